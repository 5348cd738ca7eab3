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
from jaxforget_kernels import linear_kl


def kl_divergence(logits_p: Array, logits_q: Array, *, mask: Array | None = None) -> Array:
    """KL(p || q) of categorical distributions, mean over positions.

    Args:
      logits_p: float32 `[..., V]`, unnormalised log-probabilities of p (the reference).
      logits_q: the same of q (the model); same shape.
      mask: `[...]`, bool or 0/1; False positions do not count; None counts all.
    Returns:
      Scalar float32, nats, >= 0 up to rounding; 0 where nothing counts.
    """
    if mask is not None:  # a masked NaN must not reach the gradient either
        keep = (mask != 0)[..., None]
        logits_p, logits_q = jnp.where(keep, logits_p, 0.0), jnp.where(keep, logits_q, 0.0)
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
    hidden, head = scores.hidden, scores.head
    fixed, fixed_head = jax.lax.stop_gradient((reference.hidden, reference.head))
    if hidden is None or head is None:
        raise UserError("KL: the model's score function returns no hidden states and head")
    if fixed is None or fixed_head is None:
        raise UserError("KL: the reference holds no hidden states and head; cache 'hidden' for it")
    if fixed.shape[:-1] != scores.logp.shape:
        raise UserError(
            f"KL: the reference has slots {fixed.shape[:-1]}, the scores {scores.logp.shape}; "
            "they must be made from the same packed batch"
        )
    divergence = linear_kl(
        fixed,
        fixed_head.weight,
        hidden,
        head.weight,
        bias_p=fixed_head.bias,
        bias_q=head.bias,
        softcap_p=fixed_head.softcap,
        softcap_q=head.softcap,
    )
    return share(divergence, scores.mask, counts(scores).tokens)
