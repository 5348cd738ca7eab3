"""Checks on names, weights and numbers that the combiners share."""

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from jaxforget.combiners.sums import weighted_sum
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params


def finite_weights(
    who: str, weights: Mapping[str, Any], *, least: float | None = 0.0
) -> dict[str, float]:
    """The weights as floats.

    Args:
      who: the combiner, for messages.
      weights: weight of each term by its name.
      least: smallest value allowed; None: any finite number.
    Raises:
      UserError: no weights, or one that is not a finite number >= `least`.
    """
    if not weights:
        raise UserError(f"{who}: needs at least one weight")
    return {name: number(who, f"the weight of {name!r}", w, least) for name, w in weights.items()}


def number(
    who: str, what: str, value: Any, least: float | None = 0.0, most: float = math.inf
) -> float:
    """A finite number in [least, most] as a float.

    Raises:
      UserError: it is not.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    low = -math.inf if least is None else least
    if not real or not math.isfinite(value) or not low <= float(value) <= most:
        span = "" if least is None else f" >= {least:g}"
        span += "" if most == math.inf else f" and <= {most:g}"
        raise UserError(f"{who}: {what} must be a finite number{span}, got {value!r}")
    return float(value)


def whole(who: str, what: str, value: Any, least: int, most: int | None = None) -> int:
    """An integer in [least, most].

    Raises:
      UserError: it is not.
    """
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not good or (most is not None and value > most):
        span = f">= {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{who}: {what} must be an integer {span}, got {value!r}")
    return value


def names_of(who: str, what: str, names: Iterable[str]) -> tuple[str, ...]:
    """Names of terms, each once.

    Raises:
      UserError: a single string, or a name twice.
    """
    if isinstance(names, str):
        raise UserError(f"{who}: {what} must be a list of names, got the string {names!r}")
    found = tuple(names)
    if len(set(found)) != len(found):
        raise UserError(f"{who}: {what} names a term twice: {list(found)}")
    return found


def check_terms_of(who: str, known: Iterable[str], terms: Iterable[str]) -> None:
    """Do a combiner's names and the objective's terms agree?

    Raises:
      UserError: naming the terms the combiner does not know and the names that are no terms.
    """
    missing, extra = sorted(set(terms) - set(known)), sorted(set(known) - set(terms))
    if missing or extra:
        raise UserError(
            f"{who}: terms of the objective it has no weight or use for: {missing or 'none'}, "
            f"names that are no terms: {extra or 'none'}; the objective's terms are {sorted(terms)}"
        )


def weighted(weights: Mapping[str, float], gradients: Mapping[str, Params]) -> Params:
    """sum_k w_k g_k over the named terms; a single term of weight 1 passes bit for bit."""
    some = {name: gradients[name] for name in weights}
    return weighted_sum(weights).combine(some, (), {})[0]
