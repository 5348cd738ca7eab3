"""Losses that are means over tokens.

A token mean weighs every labelled target of a step alike. With gradient accumulation the peer
(open-unlearning, as published) instead averages the means of the micro-batches, so that a target
in a short micro-batch weighs more; set one micro-batch there to compare.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.types import Scores
from jaxforget.objectives.shares import counts, masked_mean, share


def nll(logp: Array, mask: Array | None = None) -> Array:
    """Negative log-likelihood, mean over tokens.

    Args:
      logp: log-probabilities of the targets, float32, any shape, nats.
      mask: same shape, bool or 0/1; False targets do not count; None counts all.
    Returns:
      Scalar float32; 0 where nothing counts.
    """
    return -masked_mean(logp, mask)


def gradient_ascent(logp: Array, mask: Array | None = None) -> Array:
    """The negative of `nll`: minimising it raises the loss on the forget set, without bound.

    Args:
      logp: log-probabilities of the targets, float32, any shape, nats.
      mask: same shape, bool or 0/1; False targets do not count; None counts all.
    Returns:
      Scalar float32; 0 where nothing counts.
    Source: Jang et al. 2022 (arXiv 2210.01504), eq. 2.
    """
    return masked_mean(logp, mask)


def mean_logp(scores: Scores) -> Array:
    """This batch's share of the step's mean log-probability of a labelled target.

    Args:
      scores: of one role.
    Returns:
      Scalar float32, nats per token.
    """
    return share(scores.logp, scores.mask, counts(scores).tokens)


def weighted_ascent(
    logp: Array, *, beta: float, beta_unlearned: float = 0.0, mask: Array | None = None
) -> Array:
    """Gradient ascent whose tokens weigh p^beta (1 - p)^beta_unlearned, weights held fixed.

    With beta_unlearned = 0 this is WGA: what is forgotten already no longer counts. With both it
    is SatImp: saturation and importance.

    Args:
      logp: log-probabilities of the targets, float32, any shape, nats.
      beta: exponent of p >= 0; 0 with beta_unlearned = 0 is gradient ascent.
      beta_unlearned: exponent of 1 - p >= 0.
      mask: same shape, bool or 0/1; False targets do not count; None counts all.
    Returns:
      Scalar float32, mean over counted targets; 0 where nothing counts.
    Source: Wang et al. 2025 (arXiv 2502.19301), WGA; Yang et al. 2025 (arXiv 2505.11953), SatImp.
    """
    return masked_mean(token_weights(logp, beta, beta_unlearned) * logp, mask)


def token_weights(logp: Array, beta: float, beta_unlearned: float = 0.0) -> Array:
    """p^beta (1 - p)^beta_unlearned of each target, without gradient; same shape as `logp`."""
    logp = jax.lax.stop_gradient(logp)
    weights = jnp.exp(beta * logp)
    if beta_unlearned:
        weights = weights * (-jnp.expm1(jnp.minimum(logp, 0.0))) ** beta_unlearned
    return weights


def first_targets(mask: Array, segments: Array) -> Array:
    """Which slots hold the first labelled target of their example: bool `[B, T]`.

    Args:
      mask: float32 `[B, T]`.
      segments: int32 `[B, T]`.
    """
    places = jnp.where(mask != 0, jnp.arange(mask.shape[1])[None], -1)
    latest = jax.lax.cummax(places, axis=1)
    before = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous = jnp.take_along_axis(segments, jnp.maximum(before, 0), axis=1)
    return (mask != 0) & ((before < 0) | (previous != segments))
