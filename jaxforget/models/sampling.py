"""How the next token is chosen from a row of logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Sampling(NamedTuple):
    """How the next token is drawn; all but `greedy` are traced.

    Attributes:
      keys: one typed key a row, `[B]`; None under `greedy`.
      temperature: float32 scalar > 0.
      top_p: float32 scalar in (0, 1]: the smallest set of likeliest tokens with this mass.
      top_k: int32 scalar: only so many of the likeliest tokens; V or more is all.
    """

    keys: Array | None
    temperature: Array
    top_p: Array
    top_k: Array


def choose_tokens(logits: Array, sampling: Sampling, steps: Array, greedy: bool) -> Array:
    """Next tokens int32 `[B]` from logits `[B, V]`.

    Args:
      logits: of every row.
      sampling: how; its keys are those of the rows.
      steps: int32 `[B]`, tokens that each row has made before.
      greedy: the likeliest, whatever `sampling` says.
    """
    if greedy or sampling.keys is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1) / sampling.temperature
    # not jax.nn.softmax: XLA's oneDNN form of it cannot be kept in the compilation cache
    mass = jnp.exp(ranked - ranked[:, :1])
    p = mass * (1.0 / jnp.sum(mass, axis=-1, keepdims=True))
    before = jnp.cumsum(p, axis=-1) - p
    rank = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :]
    # the likeliest token always stays
    keep = (rank == 0) | ((rank < sampling.top_k) & (before < sampling.top_p))
    keys = jax.vmap(jax.random.fold_in)(sampling.keys, steps)
    drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(keep, ranked, -jnp.inf))
    return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)
