"""The output projection: hidden states to logits, and gradients back through it."""

import jax
import jax.numpy as jnp
from jax import Array


def logits(hidden: Array, weight: Array, bias: Array | None, softcap: float | None) -> Array:
    """Logits of some positions.

    Args:
      hidden: `[R, D]`; its dtype is the dtype of the product, accumulated in float32.
      weight: `[V, D]`.
      bias: `[V]` or None, added in float32.
      softcap: logits become softcap * tanh(logits / softcap); None: unchanged.
    Returns:
      float32 `[R, V]`.
    """
    out = _dot(hidden, weight.astype(hidden.dtype), (1, 1))
    if bias is not None:
        out = out + bias.astype(jnp.float32)[None, :]
    return out if softcap is None else softcap * jnp.tanh(out / softcap)


def pull_back(
    cotangent: Array, capped: Array, hidden: Array, weight: Array, softcap: float | None
) -> tuple[Array, Array, Array]:
    """Gradients of `logits`.

    Args:
      cotangent: of the logits, float32 `[R, V]`; rounded to the dtype of `hidden` before the
        products, which accumulate in float32.
      capped: the logits, float32 `[R, V]`.
      hidden, weight, softcap: as given to `logits`.
    Returns:
      float32 gradients of hidden `[R, D]`, weight `[V, D]` and bias `[V]`.
    """
    if softcap is not None:
        cotangent = cotangent * (1.0 - jnp.square(capped / softcap))
    rounded = cotangent.astype(hidden.dtype)
    to_hidden = _dot(rounded, weight.astype(hidden.dtype), (1, 0))
    to_weight = _dot(rounded, hidden, (0, 0))
    return to_hidden, to_weight, cotangent.sum(axis=0)


def _dot(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """Product of two matrices over one axis each, in float32."""
    # accelerators otherwise round float32 operands to bfloat16 or TF32
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, numbers, precision=precision, preferred_element_type=jnp.float32
    )
