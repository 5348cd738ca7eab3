"""The loss of a vector added inside a model, for every fact by itself."""

import jax.numpy as jnp
from jax import Array


def steering_losses(
    logp: Array,
    divergence: Array,
    delta: Array,
    start: Array,
    *,
    kl_weight: float = 0.0625,
    decay: float = 0.5,
) -> Array:
    """-log p(wanted) + kl_weight KL + decay |delta|^2 / |start|^2.

    Args:
      logp: log-probability of the wanted token, float32 `[m]`, nats.
      divergence: KL between what the model says elsewhere with and without the vector, float32
        `[m]`, nats.
      delta: the vectors, `[m, D]`.
      start: what they are added to, `[m, D]`, not zero.
      kl_weight, decay: >= 0.
    Returns:
      float32 `[m]`.
    Source: Meng et al. 2022, ROME (arXiv 2202.05262), eq. 4, with the decay of its published
      code; weights of UniErase (arXiv 2505.15674).
    """
    size = jnp.square(delta).sum(-1) / jnp.square(start).sum(-1)
    return -logp + kl_weight * divergence + decay * size


def shortened(delta: Array, start: Array, limit: float) -> Array:
    """Vectors scaled down to |delta| <= limit |start| where they are longer.

    Args:
      delta, start: `[m, D]`.
      limit: > 0.
    Returns:
      `[m, D]`; a vector of zeros stays one.
    """
    length, most = (jnp.linalg.norm(each, axis=-1, keepdims=True) for each in (delta, start))
    most = limit * most
    return jnp.where(length > most, delta * (most / jnp.where(length > 0, length, 1.0)), delta)
