"""The plain form: whole logits, gradients by autodiff. For tests and for reading."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget_kernels.projection import logits

type Statistics = tuple[Array, Array, Array]


def linear_cross_entropy(
    hidden: Array,
    weight: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float | None = None,
    stats: bool = False,
) -> Array | tuple[Array, Statistics]:
    """As `jaxforget_kernels.linear_cross_entropy`, with `[..., T, V]` arrays in memory."""
    vocab = weight.shape[0]
    flat = logits(hidden.reshape(-1, hidden.shape[-1]), weight, bias, softcap)
    logp = jax.nn.log_softmax(flat.reshape(*targets.shape, vocab), axis=-1)
    inside = (targets >= 0) & (targets < vocab)
    safe = jnp.where(inside, targets, 0)
    chosen = jnp.take_along_axis(logp, safe[..., None], axis=-1)[..., 0]
    answer = jnp.where(inside, chosen, jnp.where(targets < 0, 0.0, jnp.nan))
    if not stats:
        return answer
    fixed = jax.lax.stop_gradient(logp)
    p = jnp.exp(fixed)
    seen = jnp.where(p > 0, fixed, 0.0)
    hit = (jnp.argmax(fixed, axis=-1) == targets).astype(jnp.float32)
    return answer, (hit, (p * seen).sum(-1), (p * seen**2).sum(-1))
