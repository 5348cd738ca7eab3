"""Methods by name, and the table of them."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from jaxforget.combiners import weighted_sum
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.parameters import validated
from jaxforget.methods.method import Method, from_parts, make_combiner, make_finishers
from jaxforget.methods.recipe import Built, Recipe
from jaxforget.methods.recipes import RECIPES
from jaxforget.objectives import Needs

ENTRY_POINTS = "jaxforget.methods"
"""Group of entry points; an installed package's functions there are called once, to register."""

_REGISTERED: dict[str, Recipe] = {}


def names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(_known())


def register(name: str, recipe: Recipe) -> None:
    """Add a method of one's own to the catalogue: Python, YAML and command line then know it.

    Args:
      name: not taken yet; letters, digits and underscores.
      recipe: see `Recipe`.
    Raises:
      UserError: a name that is taken or no identifier, or defaults that build no method.
    """
    if not name.isidentifier():
        raise UserError(f"methods.register: {name!r} must be letters, digits and underscores")
    if name in RECIPES or name in _REGISTERED:
        raise UserError(f"methods.register: there is a method {name!r} already")
    _method(name, recipe)
    _REGISTERED[name] = recipe


def _known() -> Mapping[str, Recipe]:
    _load_plugins()
    return {**RECIPES, **_REGISTERED}


@functools.cache
def _load_plugins() -> None:
    for point in entry_points(group=ENTRY_POINTS):
        point.load()()


def get(
    name: str,
    *,
    combiner: Any = None,
    finishers: Any = (),
    traced: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Method:
    """A method by name, with its paper's defaults unless overridden.

    Args:
      name: see `names`.
      combiner: of the terms' gradients: a name such as "pcgrad", or a mapping with `name` and its
        parameters, such as {"name": "geometric_disentangle", "covectors": 4}; None: the method's.
      finishers: transforms of the optimizer's update, in order, named in the same way, such as
        [{"name": "keep_top_k", "share": 0.1}]; they come after the method's own.
      traced: scalars that take the place of validated parameters inside a compiled program.
      overrides: parameters of the method.
    Raises:
      UserError: unknown method, combiner or finisher, unknown parameter, a value out of range, or
        a combiner for a method that has its own.
    """
    known = _known()
    if name not in known:
        raise UserError(f"method: no method {name!r}. {did_you_mean(name, known)}")
    return _method(name, known[name], combiner, finishers, traced, overrides)


def _method(
    name: str,
    recipe: Recipe,
    combiner: Any = None,
    finishers: Any = (),
    traced: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Method:
    own = validated("method", name, recipe.parameters, overrides or {}, ("combiner", "finishers"))
    parameters = replace(own, **(traced or {}))
    built = recipe.build(parameters)
    if built.spec is None:
        if combiner is not None or finishers:
            raise UserError(
                f"method: {name} edits the weights without training; it takes no combiner and no "
                "finishers"
            )
        return _edit_only(name, recipe, built)
    if built.combiner is not None and combiner is not None:
        raise UserError(f"method.combiner: {name} has its own; leave it out")
    return from_parts(
        name,
        built.spec,
        built.combiner or make_combiner(combiner, built.weights),
        built.loop,
        finishers=[*built.finishers, *make_finishers(finishers)],
        edit=built.edit,
        transform=built.transform,
        planned=built.planned,
        alternate=recipe.alternate,
        own_text=built.own_text,
        poison=built.poison,
        weights_only=recipe.weights_only,
    )


def _edit_only(name: str, recipe: Recipe, built: Built) -> Method:
    return Method(
        name,
        None,
        weighted_sum({"none": 1.0}),
        Needs(()),
        built.whole,
        edit=built.edit,
        weights_only=recipe.weights_only,
        token=built.token,
    )


def from_config(config: Mapping[str, Any], *, traced: Mapping[str, Any] | None = None) -> Method:
    """The method a configuration's `method` mapping describes: `name` and parameters.

    Args:
      config: see `get`.
      traced: see `get`.
    """
    if "name" not in config:
        raise UserError(f"method: needs a name. Allowed: {', '.join(names())}.")
    overrides = {key: value for key, value in config.items() if key != "name"}
    return get(str(config["name"]), traced=traced, **overrides)


def table() -> list[dict[str, str]]:
    """One row a method, for printing: name, title, what is minimised, needs, cost, paper.

    Needs are those besides the forget set.
    """
    rows = []
    for name in names():
        recipe, method = _known()[name], get(name)
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


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same keys as a table for documentation."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
