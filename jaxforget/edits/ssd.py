"""Selective synaptic dampening: shrink what matters to the forget set far more than to all."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.engine.types import Metrics

type Alpha = float | Callable[[str], float]


def ssd(
    params: Params,
    importance_forget: Params,
    importance_all: Params,
    *,
    alpha: Alpha = 10.0,
    lam: float = 1.0,
) -> tuple[Params, Metrics]:
    """Dampen the parameters with I_forget > alpha I_all by min(lam I_all / I_forget, 1).

    Args:
      params: floating leaves.
      importance_forget, importance_all: like `params`, >= 0; see `importance`.
      alpha: threshold > 0, one for all or a function of the path ("layers/mlp/up/w"); infinity
        selects nothing. The published 10 is not safe everywhere: sweep it.
      lam: >= 0; 0 zeroes what is selected.
    Returns:
      (parameters of the same dtypes, {"selected": share of all parameters that were selected,
      "mean_factor": mean factor of these, 1 where there are none}).
    Raises:
      UserError: trees that differ, or a value out of range.
    Source: Foster et al. 2024 (arXiv 2308.07707), eq. 4 and 5.
    """
    if not lam >= 0:
        raise UserError(f"ssd: lam must be at least 0, got {lam}")
    weights, forget, everything = map(flatten, (params, importance_forget, importance_all))
    for name, tree in (("importance_forget", forget), ("importance_all", everything)):
        if tree.keys() != weights.keys():
            other = sorted(tree.keys() ^ weights.keys())[0]
            raise UserError(f"ssd: {name} and the parameters differ, first at {other!r}")
    edited, chosen, factors = {}, jnp.zeros(()), jnp.zeros(())
    for path, weight in weights.items():
        threshold = alpha(path) if callable(alpha) else alpha
        if not threshold > 0:
            raise UserError(f"ssd: alpha must be above 0, got {threshold} for {path}")
        selected, factor = _dampening(forget[path], everything[path], threshold, lam)
        edited[path] = jnp.where(selected, weight * factor, weight).astype(weight.dtype)
        chosen = chosen + selected.sum(dtype=jnp.float32)
        factors = factors + jnp.where(selected, factor, 0.0).sum()
    size = sum(weight.size for weight in weights.values())
    mean = jnp.where(chosen > 0, factors / jnp.maximum(chosen, 1.0), 1.0)
    return unflatten(edited), {"selected": chosen / size, "mean_factor": mean}


def _dampening(forget: Array, everything: Array, alpha: float, lam: float) -> tuple[Array, Array]:
    """(which parameters are selected, their factor); what the forget set ignores never is."""
    threshold = jnp.where(everything > 0, alpha * everything, 0.0)  # not inf * 0
    selected = (forget > threshold) & (forget > 0) & jnp.isfinite(jnp.float32(alpha))
    ratio = lam * everything / jnp.where(forget > 0, forget, 1.0)
    return selected, jnp.minimum(ratio, 1.0)
