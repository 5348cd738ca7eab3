"""The catalogue: every method is a named choice of parts with its paper's defaults.

Adding one means adding one entry to `RECIPES` (and a small dataclass when its parameters are new).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import TypeAdapter, ValidationError

from jaxforget.combiners import check_terms, weighted_sum
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.types import Combiner, Objective
from jaxforget.objectives import (
    ObjectiveSpec,
    graddiff,
    gradient_ascent_objective,
    npo_objective,
)

type Retain = Literal["nll", "kl"]


@dataclass(frozen=True)
class Method:
    """A method ready to run.

    Attributes:
      name: as in the catalogue.
      objective: see `jaxforget.engine.types.Objective`.
      combiner: see `jaxforget.engine.types.Combiner`.
      roles: data sets it reads, e.g. ("forget", "retain").
      reference: by role, which scores of the starting model it compares with ("logp", "hidden").
    """

    name: str
    objective: Objective
    combiner: Combiner
    roles: tuple[str, ...]
    reference: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class GradientAscentParameters:
    """Of `ga`. `forget_weight` >= 0 scales the only term."""

    forget_weight: Annotated[float, Ge(0)] = 1.0


@dataclass(frozen=True)
class GradDiffParameters:
    """Of `graddiff` and `kl_min`: weights of the two terms, >= 0, and the retain term."""

    forget_weight: Annotated[float, Ge(0)] = 1.0
    retain_weight: Annotated[float, Ge(0)] = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class KlMinParameters:
    """Of `kl_min`: weights of the two terms, >= 0."""

    forget_weight: Annotated[float, Ge(0)] = 1.0
    retain_weight: Annotated[float, Ge(0)] = 1.0


@dataclass(frozen=True)
class NpoParameters:
    """Of `npo`: `beta` > 0, weights >= 0; retain "none" is the paper's plain NPO."""

    beta: Annotated[float, Gt(0)] = 0.1
    forget_weight: Annotated[float, Ge(0)] = 1.0
    retain_weight: Annotated[float, Ge(0)] = 1.0
    retain: Literal["none", "nll", "kl"] = "nll"


@dataclass(frozen=True)
class Recipe:
    """One entry of the catalogue.

    Attributes:
      title: the method's usual name.
      paper: authors, year, arXiv id.
      formula: what is minimised, in one line.
      parameters: dataclass of its parameters with the paper's defaults.
      build: parameters -> (objective, weights of its terms).
      cost: per step, in forward and backward passes over the batch.
    """

    title: str
    paper: str
    formula: str
    parameters: type
    build: Callable[[Any], tuple[ObjectiveSpec, dict[str, float]]]
    cost: str


def _both(p: Any) -> dict[str, float]:
    return {"forget": p.forget_weight, "retain": p.retain_weight}


def _npo(p: NpoParameters) -> tuple[ObjectiveSpec, dict[str, float]]:
    weights = _both(p) if p.retain != "none" else {"forget": p.forget_weight}
    return npo_objective(beta=p.beta, retain=p.retain), weights


RECIPES: Mapping[str, Recipe] = {
    "ga": Recipe(
        title="Gradient ascent",
        paper="Jang et al. 2022 (arXiv 2210.01504)",
        formula="-NLL(forget)",
        parameters=GradientAscentParameters,
        build=lambda p: (gradient_ascent_objective(), {"forget": p.forget_weight}),
        cost="1 forward + 1 backward of forget",
    ),
    "graddiff": Recipe(
        title="Gradient difference",
        paper="Liu et al. 2022 (arXiv 2203.12817)",
        formula="-NLL(forget) + NLL(retain)",
        parameters=GradDiffParameters,
        build=lambda p: (graddiff(retain=p.retain), _both(p)),
        cost="1 forward + 1 backward of forget and retain",
    ),
    "kl_min": Recipe(
        title="KL minimisation",
        paper="Maini et al. 2024, TOFU (arXiv 2401.06121)",
        formula="-NLL(forget) + KL(start || model)(retain)",
        parameters=KlMinParameters,
        build=lambda p: (graddiff(retain="kl"), _both(p)),
        cost="1 forward + 1 backward of forget and retain",
    ),
    "npo": Recipe(
        title="Negative preference optimisation",
        paper="Zhang et al. 2024 (arXiv 2404.05868)",
        formula="(2/beta) mean softplus(beta (log p - log p_start))(forget) + NLL(retain)",
        parameters=NpoParameters,
        build=_npo,
        cost="1 forward + 1 backward of forget and retain",
    ),
}


def names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(RECIPES)


def get(name: str, **overrides: Any) -> Method:
    """A method by name, with its paper's defaults unless overridden.

    Args:
      name: see `names`.
      overrides: parameters of the method.
    Raises:
      UserError: unknown method, unknown parameter, or a value out of range.
    """
    if name not in RECIPES:
        raise UserError(f"method: no method {name!r}. {did_you_mean(name, RECIPES)}")
    recipe = RECIPES[name]
    known = [each.name for each in fields(recipe.parameters)]
    for key in overrides:
        if key not in known:
            raise UserError(f"method.{key}: {name} has no such key. {did_you_mean(key, known)}")
    try:
        parameters = TypeAdapter(recipe.parameters).validate_python(overrides)
    except ValidationError as error:
        faults = (
            f"method.{'.'.join(map(str, fault['loc']))}: {fault['msg']} (got {fault['input']!r})"
            for fault in error.errors()
        )
        raise UserError("\n".join(faults)) from None
    spec, weights = recipe.build(parameters)
    return from_parts(name, spec, weighted_sum(weights))


def from_parts(name: str, spec: ObjectiveSpec, combiner: Combiner) -> Method:
    """A method of one's own: any objective with any combiner.

    Args:
      name: for messages and results.
      spec: objective and what it needs.
      combiner: see `jaxforget.combiners`.
    """
    if combiner.weights is not None:
        check_terms(combiner.weights, spec.terms)
    return Method(name, spec.objective, combiner, spec.needs.roles, spec.needs.reference)


def from_config(config: Mapping[str, Any]) -> Method:
    """The method a configuration's `method` mapping describes: `name` and parameters."""
    if "name" not in config:
        raise UserError(f"method: needs a name. Allowed: {', '.join(names())}.")
    overrides = {key: value for key, value in config.items() if key != "name"}
    return get(str(config["name"]), **overrides)


def table() -> list[dict[str, str]]:
    """One row a method, for printing: name, title, what is minimised, needs, cost, paper."""
    rows = []
    for name in names():
        recipe, method = RECIPES[name], get(name)
        cached = [role for role, fields in method.reference.items() if fields]
        needs = [f"{role} data" for role in method.roles if role != "forget"]
        needs += [f"reference cache of {role}" for role in cached]
        rows.append(
            {
                "name": name,
                "method": recipe.title,
                "minimises": recipe.formula,
                "needs": ", ".join(needs) or "forget data only",
                "cost per step": recipe.cost,
                "source": recipe.paper,
            }
        )
    return rows


def markdown() -> str:
    """`table` for documentation."""
    rows = table()
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
