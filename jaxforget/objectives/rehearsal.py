"""Terms that hold a model to what an earlier one answered, on new or on stored examples."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.types import Reference, ReferenceScores, Scores
from jaxforget.objectives.distribution import Side, divergence, side, sides
from jaxforget.objectives.parts import Part, reference_of
from jaxforget.objectives.shares import counts, share
from jaxforget_kernels import map_logits

type Kept = Literal["hidden", "top", "target"]
"""What is stored of an earlier model's answer at a labelled target: the hidden state (all logits,
exactly, with that model's head), its largest logits and their words, or the log-probability of the
target alone."""


def distillation_part(role: str, temperature: float = 2.0) -> Part:
    """LwF: T^2 KL(softmax(z_old / T) || softmax(z / T)) at labelled targets.

    Args:
      role: data set whose reference holds the earlier model's hidden states and head.
      temperature: T > 0; the factor T^2 keeps the gradient's size.
    Raises:
      UserError: a temperature not above 0.
    Source: Li and Hoiem 2016 (arXiv 1606.09282), eq. 2-4, with T^2 as Hinton et al. 2015.
    """
    if not temperature > 0:
        raise UserError(f"lwf: temperature must be above 0, got {temperature}")

    def value(scores, reference: Reference):
        mine: Scores = scores[role]
        model, old = sides(mine, reference_of(reference, role, mine))
        apart = divergence(_softened(old, temperature), _softened(model, temperature))
        return temperature**2 * share(apart, mine.mask, counts(mine).tokens), {}

    return Part((role,), value, {role: frozenset({"hidden"})})


def _softened(one: Side, temperature: float) -> Side:
    """The distribution whose logits are divided by the temperature."""
    hidden, weight, bias, softcap = one
    if temperature == 1:
        return one
    return (
        hidden / temperature,
        weight,
        None if bias is None else bias / temperature,
        None if softcap is None else softcap / temperature,
    )


def logit_distance_part(role: str, kept: Kept = "hidden") -> Part:
    """Dark experience replay: mean squared distance to the logits that were stored.

    Args:
      role: stored examples; the reference holds what was stored with them.
      kept: see `Kept`. "hidden" and "top" compare logits, mean over all words or the stored ones;
        "target" compares log-probabilities of the target.
    Raises:
      UserError: an unknown `kept`; at trace time, a reference without it.
    Source: Buzzega et al. 2020 (arXiv 2004.07211), eq. 4; the mean over words is the published
      code's. A language model's vocabulary is too long to store, hence "top" and "target".
    """
    allowed = get_args(Kept.__value__)
    if kept not in allowed:
        raise UserError(f"der: nothing is kept as {kept!r}. {did_you_mean(kept, allowed)}")

    def value(scores, reference: Reference):
        mine: Scores = scores[role]
        gaps = _gaps(mine, reference_of(reference, role, mine), kept, role)
        return share(gaps, mine.mask, counts(mine).tokens), {}

    field = {"hidden": "hidden", "top": "top", "target": "logp"}[kept]
    return Part((role,), value, {role: frozenset({field})})


def _gaps(mine: Scores, stored: ReferenceScores, kept: str, role: str) -> Array:
    """Squared distance at every slot, float32 `[B, T]`."""
    if kept == "target":
        return jnp.square(mine.logp - jax.lax.stop_gradient(stored.logp))
    if kept == "hidden":
        return map_logits(lambda z, old: jnp.square(z - old).mean(-1), sides(mine, stored))
    if stored.words is None or stored.logits is None:
        raise UserError(f"the reference of {role!r} holds no top logits; store 'top' with it")

    def distance(z: Array, words: Array, logits: Array) -> Array:
        return jnp.square(jnp.take_along_axis(z, words, axis=-1) - logits).mean(-1)

    return map_logits(distance, [side(mine)], [stored.words, stored.logits])


def top_logits(scores: Scores, count: int) -> tuple[Array, Array]:
    """The largest logits at every slot, to be stored with an example.

    Args:
      scores: with hidden states and head.
      count: words kept, 1 .. V.
    Returns:
      Words, int32 `[B, T, count]`, and their logits, float32 `[B, T, count]`, largest first.
    Raises:
      UserError: scores without hidden states, or a count out of range.
    """
    own = side(scores)
    if not 0 < count <= own[1].shape[0]:
        raise UserError(f"top_logits: count must be from 1 to {own[1].shape[0]}, got {count}")

    def largest(z: Array) -> Array:
        values, words = jax.lax.top_k(z, count)
        return jnp.concatenate([values, words.astype(jnp.float32)], axis=-1)

    found = map_logits(largest, [own])
    return found[..., count:].astype(jnp.int32), found[..., :count]
