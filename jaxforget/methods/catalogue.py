"""Methods by name, and the table of them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.methods.method import Method, from_parts, make_combiner
from jaxforget.methods.recipes import RECIPES


def names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(RECIPES)


def get(name: str, *, combiner: Any = None, **overrides: Any) -> Method:
    """A method by name, with its paper's defaults unless overridden.

    Args:
      name: see `names`.
      combiner: of the terms' gradients: a name such as "pcgrad", or a mapping with `name` and its
        parameters, such as {"name": "geometric_disentangle", "covectors": 4}; None: the method's.
      overrides: parameters of the method.
    Raises:
      UserError: unknown method or combiner, unknown parameter, a value out of range, or a
        combiner for a method that has its own.
    """
    if name not in RECIPES:
        raise UserError(f"method: no method {name!r}. {did_you_mean(name, RECIPES)}")
    recipe = RECIPES[name]
    known = [each.name for each in fields(recipe.parameters)]
    for key in overrides:
        if key not in known:
            known.append("combiner")
            raise UserError(f"method.{key}: {name} has no such key. {did_you_mean(key, known)}")
    try:
        parameters = TypeAdapter(recipe.parameters).validate_python(overrides)
    except ValidationError as error:
        faults = (
            f"method.{'.'.join(map(str, fault['loc']))}: {fault['msg']} (got {fault['input']!r})"
            for fault in error.errors()
        )
        raise UserError("\n".join(faults)) from None
    built = recipe.build(parameters)
    if built.combiner is not None and combiner is not None:
        raise UserError(f"method.combiner: {name} has its own; leave it out")
    chosen = built.combiner or make_combiner(combiner, built.weights)
    return from_parts(name, built.spec, chosen, built.loop)


def from_config(config: Mapping[str, Any]) -> Method:
    """The method a configuration's `method` mapping describes: `name` and parameters."""
    if "name" not in config:
        raise UserError(f"method: needs a name. Allowed: {', '.join(names())}.")
    overrides = {key: value for key, value in config.items() if key != "name"}
    return get(str(config["name"]), **overrides)


def table() -> list[dict[str, str]]:
    """One row a method, for printing: name, title, what is minimised, needs, cost, paper.

    Needs are those besides the forget set.
    """
    rows = []
    for name in names():
        recipe, method = RECIPES[name], get(name)
        cached = [role for role, fields in method.reference.items() if fields]
        needs = [role for role in method.roles if role != "forget"]
        needs += [f"reference cache of {role}" for role in cached]
        rows.append(
            {
                "name": name,
                "method": recipe.title,
                "minimises": recipe.formula,
                "needs": ", ".join(needs) or "-",
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
