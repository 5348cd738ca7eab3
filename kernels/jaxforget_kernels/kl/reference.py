"""The plain form: whole logits, gradients by autodiff. For tests and for reading."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget_kernels.projection import logits


def linear_kl(
    hidden_p: Array,
    weight_p: Array,
    hidden_q: Array,
    weight_q: Array,
    *,
    bias_p: Array | None = None,
    bias_q: Array | None = None,
    softcap_p: float | None = None,
    softcap_q: float | None = None,
) -> Array:
    """As `jaxforget_kernels.linear_kl`, with `[..., T, V]` arrays in memory."""
    shape = (*hidden_p.shape[:-1], weight_p.shape[0])
    flat_p = hidden_p.reshape(-1, hidden_p.shape[-1])
    flat_q = hidden_q.reshape(-1, hidden_q.shape[-1])
    logp = jax.nn.log_softmax(logits(flat_p, weight_p, bias_p, softcap_p).reshape(shape))
    logq = jax.nn.log_softmax(logits(flat_q, weight_q, bias_q, softcap_q).reshape(shape))
    return (jnp.exp(logp) * (logp - logq)).sum(axis=-1)
