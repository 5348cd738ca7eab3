"""Losses on whole answers: a packed example's log-probability is the sum over its targets."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Scores
from jaxforget.objectives.shares import masked_mean


def npo(logp: Array, ref_logp: Array, *, beta: float | Array, mask: Array | None = None) -> Array:
    """Negative preference optimisation: (2 / beta) mean softplus(beta (logp - ref_logp)).

    Args:
      logp: log-probabilities of whole answers under the model, float32, any shape, nats.
      ref_logp: the same under the reference model; no gradient flows into it.
      beta: inverse temperature > 0. As beta -> 0 the gradient tends to that of the mean of
        `logp` (gradient ascent on sequences); where both agree the loss is (2 / beta) log 2.
      mask: same shape, bool or 0/1; False answers do not count; None counts all.
    Returns:
      Scalar float32; 0 where nothing counts.
    Raises:
      UserError: beta is a number that is not above 0.
    Source: Zhang et al. 2024 (arXiv 2404.05868), eq. 3.
    """
    check_beta(beta)
    if mask is not None:  # a masked NaN must not reach the gradient either
        logp, ref_logp = jnp.where(mask != 0, logp, 0.0), jnp.where(mask != 0, ref_logp, 0.0)
    return masked_mean(npo_losses(logp, ref_logp, beta), mask)


def npo_losses(logp: Array, ref_logp: Array, beta: float | Array) -> Array:
    """The loss of `npo` before its mean; same shapes."""
    gap = logp - jax.lax.stop_gradient(ref_logp)
    return (2.0 / beta) * jax.nn.softplus(beta * gap)


def npo_weights(logp: Array, ref_logp: Array, beta: float | Array) -> Array:
    """How much of gradient ascent's pull is left for each answer, between 0 and 2.

    2 p^beta / (p^beta + p_ref^beta): 1 at the start, towards 0 as an answer is forgotten.
    """
    return 2.0 * jax.nn.sigmoid(beta * (logp - ref_logp))


def check_beta(beta: float | Array) -> None:
    """Refuse an inverse temperature that is not above 0; traced values pass unseen."""
    if isinstance(beta, int | float) and not beta > 0:
        raise UserError(f"npo: beta must be above 0, got {beta}")


def sequence_logp(scores: Scores, logp: Array | None = None) -> Array:
    """Log-probability of each packed answer: the sum over its labelled targets.

    Args:
      scores: of one role.
      logp: `[B, T]` to sum in the same slots, such as a reference's; None: that of `scores`.
    Returns:
      float32 `[B, S]`; column s holds segment s + 1 of each row, 0 where it has no target.
    """
    logp = scores.logp if logp is None else logp
    counted = jnp.where(scores.mask != 0, logp, 0.0) * scores.mask
    # compare and sum, not a scatter: local to each row, hence to each device
    number = jnp.arange(1, scores.example.shape[1] + 1)
    inside = scores.segments[:, :, None] == number[None, None, :]
    return jnp.where(inside, counted[:, :, None], 0.0).sum(axis=1)


def valid_examples(scores: Scores) -> Array:
    """Which packed slots hold an example: bool `[B, S]`."""
    return scores.example >= 0
