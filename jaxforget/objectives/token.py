"""Losses that are means over tokens.

A token mean weighs every labelled target of a step alike. With gradient accumulation the peer
(open-unlearning, as published) instead averages the means of the micro-batches, so that a target
in a short micro-batch weighs more; set one micro-batch there to compare.
"""

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
