"""Losses on whole distributions, exact, without an array of tokens x vocabulary.

The divergence is averaged over labelled targets. The peer (open-unlearning) averages over every
position of its padded batch, prompt and padding included. There is no switch for that: padding
has no counterpart in packed rows, and compacted scores hold labelled positions only, so a number
under that name would not be the peer's.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import ReferenceScores, Scores
from jaxforget.objectives.shares import counts, masked_mean, share


def kl_divergence(logits_p: Array, logits_q: Array, *, mask: Array | None = None) -> Array:
    """KL(p || q) of categorical distributions, mean over positions.

    Args:
      logits_p: float32 `[..., V]`, unnormalised log-probabilities of p (the reference).
      logits_q: the same of q (the model); same shape.
      mask: `[...]`, bool or 0/1; False positions do not count; None counts all.
    Returns:
      Scalar float32, nats, >= 0 up to rounding; 0 where nothing counts.
    """
    logp = jax.nn.log_softmax(logits_p, axis=-1)
    logq = jax.nn.log_softmax(logits_q, axis=-1)
    p = jnp.exp(logp)
    gap = jnp.where(p > 0, logp - logq, 0.0)  # 0 log 0 = 0
    return masked_mean((p * gap).sum(axis=-1), mask)


def reference_kl(scores: Scores, reference: ReferenceScores) -> Array:
    """This batch's share of the step's mean KL(reference || model) over labelled targets.

    Args:
      scores: of one role, with `hidden` and `head`.
      reference: of the same batch, with `hidden` and `head`; no gradient flows into it.
    Returns:
      Scalar float32, nats per token.
    Raises:
      UserError: hidden states or a head are missing on either side, or the slots differ.
    """
    from jaxforget_kernels import linear_kl

    if scores.hidden is None or scores.head is None:
        raise UserError("KL: the model's score function returns no hidden states and head")
    if reference.hidden is None or reference.head is None:
        raise UserError("KL: the reference holds no hidden states and head; cache 'hidden' for it")
    if reference.hidden.shape[:-1] != scores.logp.shape:
        raise UserError(
            f"KL: the reference has slots {reference.hidden.shape[:-1]}, "
            f"the scores {scores.logp.shape}; they must be made from the same packed batch"
        )
    p = jax.lax.stop_gradient(reference)
    divergence = linear_kl(
        p.hidden,
        p.head.weight,
        scores.hidden,
        scores.head.weight,
        bias_p=p.head.bias,
        bias_q=scores.head.bias,
        softcap_p=p.head.softcap,
        softcap_q=scores.head.softcap,
    )
    return share(divergence, scores.mask, counts(scores).tokens)
