"""Losses on whole answers: a packed example's log-probability is the sum over its targets."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Scores
from jaxforget.objectives.shares import counts, masked_mean, share


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
    return npo_mean(logp, ref_logp, beta, mask)


def npo_losses(logp: Array, ref_logp: Array, beta: float | Array) -> Array:
    """The loss of `npo` before its mean; same shapes."""
    gap = logp - jax.lax.stop_gradient(ref_logp)
    return (2.0 / beta) * jax.nn.softplus(beta * gap)


def npo_weights(logp: Array, ref_logp: Array, beta: float | Array) -> Array:
    """How much of gradient ascent's pull is left for each answer, between 0 and 2.

    2 p^beta / (p^beta + p_ref^beta): 1 at the start, towards 0 as an answer is forgotten.
    """
    return 2.0 * jax.nn.sigmoid(beta * (logp - ref_logp))


def check_beta(beta: float | Array, name: str = "npo") -> None:
    """Refuse an inverse temperature that is not above 0; traced values pass unseen."""
    if isinstance(beta, int | float) and not beta > 0:
        raise UserError(f"{name}: beta must be above 0, got {beta}")


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


def example_lengths(scores: Scores) -> Array:
    """Labelled targets of each packed example: float32 `[B, S]`."""
    return sequence_logp(scores, jnp.ones_like(scores.logp))


def mean_example_logp(scores: Scores) -> Array:
    """Share of the mean over examples of the mean log-probability of their targets, nats a token.

    Examples weigh alike, so that a token of a short one weighs more than under `mean_logp`.
    """
    lengths = example_lengths(scores)
    there = valid_examples(scores) & (lengths > 0)
    means = sequence_logp(scores) / jnp.maximum(lengths, 1.0)
    return share(means, there, counts(scores).examples)


def mean_sequence_logp(scores: Scores) -> Array:
    """Share of the mean log-probability of an answer, nats."""
    return share(sequence_logp(scores), valid_examples(scores), counts(scores).examples)


def simnpo(
    mean_logp: Array, *, beta: float | Array, margin: float = 0.0, mask: Array | None = None
) -> Array:
    """SimNPO: (2 / beta) mean softplus(beta (mean_logp + margin)); no reference model.

    Args:
      mean_logp: length-normalised log-probabilities of answers, float32, any shape, nats a token.
      beta: inverse temperature > 0.
      margin: delta of the peer, nats a token; the paper's gamma is beta * margin.
      mask: same shape, bool or 0/1; False answers do not count; None counts all.
    Returns:
      Scalar float32; 0 where nothing counts.
    Raises:
      UserError: beta is a number that is not above 0.
    Source: Fan et al. 2024 (arXiv 2410.07163), eq. 3.
    """
    check_beta(beta, "simnpo")
    return npo_mean(mean_logp, -jnp.full_like(mean_logp, margin), beta, mask)


def dpo(
    logp: Array,
    ref_logp: Array,
    alternate_logp: Array,
    ref_alternate_logp: Array,
    *,
    beta: float | Array,
    mask: Array | None = None,
) -> Array:
    """DPO with the answer to forget as the losing one: (2 / beta) mean softplus(-beta gap).

    gap = (alternate_logp - ref_alternate_logp) - (logp - ref_logp). The factor 2 / beta is the
    peer's; standard DPO has 1.

    Args:
      logp, ref_logp: of the answers to forget under the model and the reference, float32, any
        shape, nats.
      alternate_logp, ref_alternate_logp: the same of the answers preferred to them.
      beta: inverse temperature > 0.
      mask: same shape, bool or 0/1; False pairs do not count; None counts all.
    Returns:
      Scalar float32; (2 / beta) log 2 where model and reference agree, 0 where nothing counts.
    Raises:
      UserError: beta is a number that is not above 0.
    Source: Maini et al. 2024, TOFU (arXiv 2401.06121), appendix; Rafailov et al. 2023.
    """
    check_beta(beta, "dpo")
    reference = ref_logp + alternate_logp - ref_alternate_logp
    if mask is not None:
        logp, reference = (jnp.where(mask != 0, x, 0.0) for x in (logp, reference))
    return masked_mean(dpo_losses(reference - logp, beta), mask)


def dpo_losses(gap: Array, beta: float | Array) -> Array:
    """The loss of `dpo` before its mean, of gaps of any shape."""
    return (2.0 / beta) * jax.nn.softplus(-beta * gap)


def npo_mean(logp: Array, ref_logp: Array, beta: float | Array, mask: Array | None) -> Array:
    """Mean of `npo_losses` over counted answers; a masked NaN is never seen."""
    if mask is not None:
        logp, ref_logp = (jnp.where(mask != 0, x, 0.0) for x in (logp, ref_logp))
    return masked_mean(npo_losses(logp, ref_logp, beta), mask)
