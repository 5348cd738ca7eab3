"""Edits by adding and subtracting whole models."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten


def task_arithmetic(params: Params, tuned: Params, *, scale: float) -> Params:
    """Move away from what fine-tuning on the forget set does: params - scale (tuned - params).

    Args:
      params: of the model that is to forget.
      tuned: of that model after fine-tuning on the forget set.
      scale: any finite number; 0 changes nothing, negative values learn.
    Returns:
      Parameters in the dtypes of `params`.
    Raises:
      UserError: trees that differ.
    Source: Ilharco et al. 2023 (arXiv 2212.04089); on MUSE, Shi et al. 2024 (arXiv 2407.06460).
    """
    return interpolate(params, tuned, share=-scale)


def interpolate(params: Params, other: Params, *, share: float) -> Params:
    """(1 - share) params + share other, as WiSE-FT and model averaging do; in float32.

    Args:
      params, other: of one architecture.
      share: 0 gives `params`, 1 gives `other`, both bit for bit; values outside [0, 1] go beyond.
    Raises:
      UserError: trees that differ.
    Source: Wortsman et al. 2022 (arXiv 2109.01903).
    """
    _check_alike(params, other)
    if share == 0:
        return params
    if share == 1:
        return jax.tree.map(lambda a, b: b.astype(a.dtype), params, other)

    def mix(a: Array, b: Array) -> Array:
        wide = a.astype(jnp.float32)
        return (wide + share * (b.astype(jnp.float32) - wide)).astype(a.dtype)

    return jax.tree.map(mix, params, other)


def whp_logits(base: Array, reinforced: Array, *, alpha: float) -> Array:
    """Logits with the reinforced model's gains taken off: base - alpha relu(reinforced - base).

    Args:
      base: logits of the model that is to forget, float32 `[..., V]`.
      reinforced: of that model after further training on the forget set; same shape.
      alpha: >= 0; 0 changes nothing.
    Raises:
      UserError: a negative alpha.
    Source: Eldan and Russinovich 2023 (arXiv 2310.02238), eq. 1.
    """
    if not alpha >= 0:
        raise UserError(f"whp: alpha must be at least 0, got {alpha}")
    return base - alpha * jax.nn.relu(reinforced - base)


def _check_alike(params: Params, other: Params) -> None:
    mine, theirs = flatten(params), flatten(other)
    for path in sorted(mine.keys() | theirs.keys()):
        if path not in mine or path not in theirs:
            raise UserError(f"the two models differ: only one has {path!r}")
        if mine[path].shape != theirs[path].shape:
            raise UserError(
                f"the two models differ at {path!r}: {mine[path].shape} and {theirs[path].shape}"
            )
