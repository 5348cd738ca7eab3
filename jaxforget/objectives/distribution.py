"""Losses on whole distributions, exact, without an array of tokens x vocabulary.

The divergence is averaged over labelled targets. The peer (open-unlearning) averages over every
position of its padded batch, prompt and padding included; padding has no counterpart in packed
rows, so its number comes from `kl_divergence(..., peer_compat=True)` on padded arrays.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import ReferenceScores, Scores
from jaxforget.objectives.shares import counts, masked_mean, share
from jaxforget_kernels import linear_kl


def kl_divergence(
    logits_p: Array, logits_q: Array, *, mask: Array | None = None, peer_compat: bool = False
) -> Array:
    """KL(p || q) of categorical distributions, mean over positions.

    Args:
      logits_p: float32 `[..., V]`, unnormalised log-probabilities of p (the reference).
      logits_q: the same of q (the model); same shape.
      mask: `[...]`, bool or 0/1; False positions do not count; None counts all.
      peer_compat: count every position whatever `mask` says, prompt and padding too, as
        open-unlearning does.
    Returns:
      Scalar float32, nats, >= 0 up to rounding; 0 where nothing counts.
    """
    mask = None if peer_compat else mask
    if mask is not None:  # a masked NaN must not reach the gradient either
        keep = (mask != 0)[..., None]
        logits_p, logits_q = jnp.where(keep, logits_p, 0.0), jnp.where(keep, logits_q, 0.0)
    logp = jax.nn.log_softmax(logits_p, axis=-1)
    logq = jax.nn.log_softmax(logits_q, axis=-1)
    p = jnp.exp(logp)
    gap = jnp.where(p > 0, logp - logq, 0.0)  # 0 log 0 = 0
    return masked_mean((p * gap).sum(axis=-1), mask)


def reference_kl(
    scores: Scores,
    reference: ReferenceScores,
    *,
    reverse: bool = False,
    temperature: float = 1.0,
) -> Array:
    """This batch's share of the step's mean KL(reference || model) over labelled targets.

    Args:
      scores: of one role, with `hidden` and `head`.
      reference: of the same batch, with `hidden` and `head`; no gradient flows into it.
      reverse: KL(model || reference) instead.
      temperature: T > 0: both distributions are softmax(logits / T), and the mean is multiplied by
        T^2, which keeps its gradient's size (Hinton et al. 2015, arXiv 1503.02531, section 2.1).
    Returns:
      Scalar float32, nats per token.
    Raises:
      UserError: hidden states or a head are missing on either side, or the slots differ.
    """
    model, start = (softened(each, temperature) for each in sides(scores, reference))
    p, q = (model, start) if reverse else (start, model)
    return temperature**2 * share(divergence(p, q), scores.mask, counts(scores).tokens)


type Side = tuple[Array, Array, Array | None, float | None]
"""Hidden states `[B, T, D]`, head weight `[V, D]`, bias and soft cap of one model."""


def divergence(p: Side, q: Side) -> Array:
    """KL(p || q) of two models at every slot, float32 `[B, T]`, nats."""
    hidden_p, weight_p, bias_p, softcap_p = p
    hidden_q, weight_q, bias_q, softcap_q = q
    return linear_kl(
        hidden_p,
        weight_p,
        hidden_q,
        weight_q,
        bias_p=bias_p,
        bias_q=bias_q,
        softcap_p=softcap_p,
        softcap_q=softcap_q,
    )


def softened(side: Side, temperature: float) -> Side:
    """The side whose logits are divided by the temperature; itself at 1."""
    if temperature == 1.0:
        return side
    hidden, weight, bias, softcap = side
    cooler = None if bias is None else bias / temperature
    return hidden / temperature, weight, cooler, None if softcap is None else softcap / temperature


def side(scores: Scores) -> Side:
    """The model's own distributions.

    Raises:
      UserError: the score function gave no hidden states and head.
    """
    if scores.hidden is None or scores.head is None:
        raise UserError("the model's score function returns no hidden states and head")
    head = scores.head
    return scores.hidden, head.weight, head.bias, head.softcap


def sides(scores: Scores, reference: ReferenceScores) -> tuple[Side, Side]:
    """The model's distributions and the starting model's, the latter without gradient.

    Raises:
      UserError: hidden states or a head are missing on either side, or the slots differ.
    """
    hidden, head = jax.lax.stop_gradient((reference.hidden, reference.head))
    if hidden is None or head is None:
        raise UserError("the reference holds no hidden states and head; cache 'hidden' for it")
    if hidden.shape[:-1] != scores.logp.shape:
        raise UserError(
            f"the reference has slots {hidden.shape[:-1]}, the scores {scores.logp.shape}; "
            "they must be made from the same packed batch"
        )
    return side(scores), (hidden, head.weight, head.bias, head.softcap)
