"""Losses of open-unlearning on its own padded batches, faults included, to compare numbers with it.

The functions of this package differ from them on purpose in three ways: KL and UNDIAL are averaged
over labelled targets, not over prompt and padding; nothing is ever indexed by -100; and terms are
means over the whole step, not means of micro-batch means (`train.peer_compat` trains with those).
Where one micro-batch holds the step, the others agree (a test compares them). These here are for
reading numbers, not for training: they need whole arrays of logits.

Throughout: `logits` float32 `[B, T, V]` as the model emits them; `labels` int `[B, T]`, the input
ids themselves with -100 where nothing is to be learned, so that position t predicts label t + 1.
Values are scalars in nats.

Source: github.com/locuslab/open-unlearning, src/trainer/unlearn, read at commit d3d7cf9.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.objectives import adjusted
from jaxforget.objectives.distribution import kl_divergence

IGNORED = -100


def nll(logits: Array, labels: Array) -> Array:
    """Mean over the labelled tokens of the micro-batch, as Hugging Face models compute it."""
    losses, mask = _token_losses(logits, labels)
    return losses.sum() / mask.sum()


def kl_retain(logits: Array, ref_logits: Array) -> Array:
    """KL(reference || model), averaged over all positions, prompt and padding included."""
    return kl_divergence(ref_logits, logits, peer_compat=True)


def npo(logits: Array, ref_logits: Array, labels: Array, *, beta: float) -> Array:
    """NPO on summed log-probabilities, mean over the sequences."""
    gain = _sequence_losses(ref_logits, labels) - _sequence_losses(logits, labels)
    return (2.0 / beta) * jax.nn.softplus(beta * gain).mean()


def dpo(
    logits: tuple[Array, Array],
    ref_logits: tuple[Array, Array],
    labels: tuple[Array, Array],
    *,
    beta: float,
) -> Array:
    """DPO with its further factor 2 / beta; every pair is (alternate, forget)."""
    gains = [
        _sequence_losses(start, label) - _sequence_losses(now, label)
        for now, start, label in zip(logits, ref_logits, labels, strict=True)
    ]
    return (2.0 / beta) * jax.nn.softplus(-beta * (gains[0] - gains[1])).mean()


def simnpo(logits: Array, labels: Array, *, beta: float, delta: float) -> Array:
    """SimNPO on mean log-probabilities; `delta` is the `margin` of `simnpo`, nats a token."""
    lengths = (labels[:, 1:] != IGNORED).sum(-1)
    means = _sequence_losses(logits, labels) / lengths
    return (2.0 / beta) * jax.nn.softplus(-beta * (means - delta)).mean()


def undial(logits: Array, ref_logits: Array, labels: Array, *, beta: float) -> Array:
    """UNDIAL averaged over every shifted position.

    Where nothing is labelled, the label -100 names the vocabulary's entry V - 100, whose logit is
    lowered there; V must be at least 100.
    """
    flat = (logits[:, :-1], ref_logits[:, :-1])
    now, start = (each.reshape(-1, each.shape[-1]) for each in flat)
    targets = labels[:, 1:].reshape(-1)
    return adjusted.undial(now, start, targets, beta, peer_compat=True).mean()


def weighted_ascent(
    logits: Array, labels: Array, *, beta: float, beta_unlearned: float = 0.0
) -> Array:
    """WGA, and with `beta_unlearned` SatImp: -mean p^beta (1 - p)^beta_unlearned NLL."""
    losses, mask = _token_losses(logits, labels)
    p = jax.lax.stop_gradient(jnp.exp(-losses))
    weights = p**beta * (1.0 - p) ** beta_unlearned
    return -(weights * losses).sum() / mask.sum()


def squared_spread(logits: Array, labels: Array) -> Array:
    """PDU's forget term, masked by the labels without the shift: one position late."""
    spread = jnp.square(logits.max(-1) - logits.mean(-1))
    mask = labels != IGNORED
    return jnp.where(mask, spread, 0.0).sum() / mask.sum()


def _token_losses(logits: Array, labels: Array) -> tuple[Array, Array]:
    """NLL of every shifted position, 0 where nothing is labelled; and where something is."""
    shifted, mask = labels[:, 1:], labels[:, 1:] != IGNORED
    logp = jax.nn.log_softmax(logits[:, :-1])
    own = jnp.take_along_axis(logp, jnp.where(mask, shifted, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(mask, -own, 0.0), mask


def _sequence_losses(logits: Array, labels: Array) -> Array:
    return _token_losses(logits, labels)[0].sum(-1)
