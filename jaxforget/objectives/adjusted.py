"""Losses towards adjusted distributions: the model's own or the starting model's, changed.

Each is a mean over labelled targets. The peer averages UNDIAL over prompt and padding as well,
where its target index -100 silently names a word of the vocabulary: `undial(...,
peer_compat=True)`, and `open_unlearning.undial` for its mean.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Reference, Scores
from jaxforget.objectives.distribution import side, sides
from jaxforget.objectives.parts import Part, reference_of
from jaxforget.objectives.representation import FORGET
from jaxforget.objectives.shares import counts, share
from jaxforget.objectives.token import first_targets
from jaxforget_kernels import map_logits


def cross_entropy_unlearning(logits: Array, targets: Array) -> Array:
    """CE-U: cross entropy to the model's own distribution without the target, held fixed.

    Args:
      logits: float32 `[R, V]`.
      targets: int32 `[R]`.
    Returns:
      float32 `[R]`, nats.
    Source: Yang 2025 (arXiv 2503.01224).
    """
    others = jnp.where(_is_target(logits, targets), -jnp.inf, jax.lax.stop_gradient(logits))
    goal, logq = jax.nn.softmax(others, axis=-1), jax.nn.log_softmax(logits, axis=-1)
    return -jnp.where(goal > 0, goal * logq, 0.0).sum(-1)


def undial(
    logits: Array, start_logits: Array, targets: Array, beta: float, *, peer_compat: bool = False
) -> Array:
    """UNDIAL: cross entropy to the starting model whose target's logit is lowered by beta.

    Args:
      logits, start_logits: float32 `[R, V]`; no gradient flows into the latter.
      targets: int32 `[R]`; where it names no word, such as the -100 of prompts, nothing is lowered.
      beta: >= 0; 0 distils the starting model itself.
      peer_compat: negative targets count from the end of the vocabulary, as in open-unlearning.
    Returns:
      float32 `[R]`, nats.
    Source: Dong et al. 2024 (arXiv 2402.10052), eq. 3.
    """
    if peer_compat:
        targets = jnp.where(targets < 0, logits.shape[-1] + targets, targets)
    lowered = jax.lax.stop_gradient(start_logits) - beta * _is_target(logits, targets)
    goal = jax.nn.softmax(lowered, axis=-1)
    return -(goal * jax.nn.log_softmax(logits, axis=-1)).sum(-1)


def uniform_cross_entropy(logits: Array) -> Array:
    """KL(uniform || model) of each position: maximal entropy is the aim; float32 `[R]`, nats.

    Source: Yuan et al. 2024 (arXiv 2410.08109), ME.
    """
    logq = jax.nn.log_softmax(logits, axis=-1)
    return -logq.mean(-1) - jnp.log(logits.shape[-1])


def squared_spread(logits: Array) -> Array:
    """(largest - mean logit)^2 of each position, 0 where all are equal; float32 `[R]`.

    Source: PDU, as open-unlearning computes it.
    """
    return jnp.square(logits.max(-1) - logits.mean(-1))


def smoothed_cross_entropy(logits: Array, targets: Array, smoothing: float) -> Array:
    """Cross entropy to (1 - smoothing) target + smoothing uniform; float32 `[R]`, nats."""
    logq = jax.nn.log_softmax(logits, axis=-1)
    own = jnp.take_along_axis(logq, targets[:, None], axis=-1)[:, 0]
    return -(1.0 - smoothing) * own - smoothing * logq.mean(-1)


def ce_u_part(skip: int = 1) -> Part:
    """CE-U on the forget set.

    Args:
      skip: 1 leaves out each answer's first target, as published; 0 counts all.
    Raises:
      UserError: another `skip`.
    """
    if skip not in (0, 1):
        raise UserError(f"ce_u: skip must be 0 or 1, got {skip}")

    def value(scores, _: Reference):
        mine = scores[FORGET]
        losses = map_logits(cross_entropy_unlearning, [side(mine)], [_targets(mine)])
        kept = mine.mask
        total = counts(mine).tokens
        if skip:
            kept = kept * ~first_targets(mine.mask, mine.segments)
            total = total - counts(mine).examples
        return share(losses, kept, total), {}

    return Part((FORGET,), value)


def undial_part(beta: float) -> Part:
    """UNDIAL on the forget set; see `undial`."""
    if not beta >= 0:
        raise UserError(f"undial: beta must be at least 0, got {beta}")

    def value(scores, reference: Reference):
        mine = scores[FORGET]
        pair = sides(mine, reference_of(reference, FORGET, mine))
        losses = map_logits(lambda z, start, y: undial(z, start, y, beta), pair, [_targets(mine)])
        return share(losses, mine.mask, counts(mine).tokens), {}

    return Part((FORGET,), value, {FORGET: frozenset({"hidden"})})


def uniform_part() -> Part:
    """Maximal entropy on the forget set; see `uniform_cross_entropy`."""
    return _plain(uniform_cross_entropy)


def smoothed_part(smoothing: float) -> Part:
    """Smoothed labels on the forget set; see `smoothed_cross_entropy`."""
    if not 0 <= smoothing <= 1:
        raise UserError(f"label_smoothing: smoothing must be in [0, 1], got {smoothing}")

    def value(scores, _: Reference):
        mine = scores[FORGET]
        losses = map_logits(
            lambda z, y: smoothed_cross_entropy(z, y, smoothing), [side(mine)], [_targets(mine)]
        )
        return share(losses, mine.mask, counts(mine).tokens), {}

    return Part((FORGET,), value)


def spread_part() -> Part:
    """PDU's forget term; see `squared_spread`."""
    return _plain(squared_spread)


def _plain(loss) -> Part:
    def value(scores, _: Reference):
        mine = scores[FORGET]
        losses = map_logits(loss, [side(mine)])
        return share(losses, mine.mask, counts(mine).tokens), {}

    return Part((FORGET,), value)


def _targets(scores: Scores) -> Array:
    if scores.targets is None:
        raise UserError("the model's score function returns no targets")
    return scores.targets


def _is_target(logits: Array, targets: Array) -> Array:
    return jnp.arange(logits.shape[-1])[None, :] == targets[:, None]
