"""Weighted sums of the terms' gradients."""

import math
import numbers
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Combiner, Metrics


def weighted_sum(weights: Mapping[str, float]) -> Combiner:
    """The direction sum_k w_k g_k.

    The engine differentiates the weighted sum of the terms themselves, one backward pass for all
    of them; `combine` gives the same from separate gradients. A single term of weight 1 passes
    through bit for bit.

    Args:
      weights: finite weight of each term by its name; they must name the objective's terms
        exactly. Traced scalars pass unseen.
    Returns:
      A `Combiner` without state, its `weights` set.
    Raises:
      UserError: no weights, or one that is not a finite number; from `combine`, at trace time, a
        term without a weight or a weight without a term.
    """
    if not weights:
        raise UserError("weighted_sum: needs at least one weight")
    fixed = {name: _finite(name, weight) for name, weight in weights.items()}

    def init(params: Params) -> tuple[()]:
        return ()

    def combine(
        gradients: dict[str, Params], state: Any, params: Params
    ) -> tuple[Params, Any, Metrics]:
        check_terms(fixed, gradients)
        scaled = [_scale(gradients[name], weight) for name, weight in fixed.items()]
        return reduce(lambda a, b: jax.tree.map(jnp.add, a, b), scaled), state, {}

    return Combiner(init=init, combine=combine, weights=fixed)


def _finite(name: str, weight: Any) -> Any:
    if isinstance(weight, Tracer):
        return weight
    if not isinstance(weight, numbers.Real) or not math.isfinite(weight):
        raise UserError(
            f"weighted_sum: the weight of {name!r} must be a finite number, got {weight!r}"
        )
    return float(weight)


def check_terms(weights: Mapping[str, float], terms: Iterable[str]) -> None:
    """Do weights and terms name the same things?

    Raises:
      UserError: naming the terms without a weight and the weights without a term.
    """
    missing, extra = sorted(set(terms) - set(weights)), sorted(set(weights) - set(terms))
    if missing or extra:
        raise UserError(
            f"weighted_sum: terms without a weight: {missing or 'none'}, weights without a term: "
            f"{extra or 'none'}; the objective's terms are {sorted(terms)}"
        )


def _scale(gradient: Params, weight: Any) -> Params:
    if not isinstance(weight, Tracer) and weight == 1.0:
        return gradient  # bit for bit
    return jax.tree.map(lambda leaf: leaf * weight, gradient)
