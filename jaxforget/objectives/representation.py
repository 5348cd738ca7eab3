"""Losses on the output of an inner layer: misdirection of what the model makes of a text."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Reference, Scores
from jaxforget.objectives.parts import Part, reference_of
from jaxforget.objectives.sequence import example_lengths, sequence_logp, valid_examples
from jaxforget.objectives.shares import counts, share

FORGET = "forget"


def random_direction(width: int, seed: int) -> Array:
    """The fixed unit vector that RMU steers towards: uniform in [0, 1)^D, normalised.

    Args:
      width: D.
      seed: >= 0; equal seeds give equal vectors.
    Returns:
      float32 `[D]`, Euclidean norm 1.
    """
    drawn = jax.random.uniform(jax.random.key(seed), (width,), jnp.float32)
    return drawn / jnp.linalg.norm(drawn)


def mean_squared_distance(scores: Scores, target: Array) -> Array:
    """Share of the mean over examples of the mean over targets and width of (h - target)^2.

    Args:
      scores: of one role, with `residual`.
      target: broadcastable to `[B, T, D]`.
    Raises:
      UserError: the score function returned no residual.
    """
    if scores.residual is None:
        raise UserError("the model's score function returns no residual")
    gap = scores.residual.astype(jnp.float32) - target.astype(jnp.float32)
    return mean_over_examples(jnp.square(gap).mean(-1), scores)


def mean_over_examples(values: Array, scores: Scores) -> Array:
    """Share of the mean over examples of each example's mean over its labelled targets.

    Args:
      values: float32 `[B, T]` in the slots of `scores`.
    """
    lengths = example_lengths(scores)
    means = sequence_logp(scores, values) / jnp.where(lengths > 0, lengths, 1.0)
    return share(means, valid_examples(scores), counts(scores).examples)


def rmu_part(layer: int, coefficient: float, *, seed: int = 0) -> Part:
    """Representation misdirection: steer the forget set's states towards a random vector.

    Positions are those that predict a labelled target; the peer takes those that hold one, which
    lie one to the right.

    Args:
      layer: whose output is steered, counted from 0, negative from the last.
      coefficient: length of the vector, > 0.
      seed: of its direction.
    Source: Li et al. 2024 (arXiv 2403.03218), eq. 1.
    """
    _check_coefficient(coefficient)

    def value(scores, reference: Reference):
        states = scores[FORGET]
        width = 0 if states.residual is None else states.residual.shape[-1]
        target = coefficient * random_direction(width, seed) if width else jnp.zeros(())
        return mean_squared_distance(states, target.reshape(1, 1, -1)), {}

    return Part((FORGET,), value, residual=layer)


def adaptive_rmu_part(layer: int, scale: float, *, seed: int = 0) -> Part:
    """RMU whose vector is `scale` times as long as the starting model's state at each position.

    Args:
      layer, seed: see `rmu_part`.
      scale: > 0.
    Source: Dang et al. 2024 (arXiv 2408.06223), section 4.
    """
    _check_coefficient(scale)

    def value(scores, reference: Reference):
        start = reference_of(reference, FORGET, scores[FORGET]).residual
        if start is None:
            raise UserError("the reference of 'forget' holds no residual; cache 'residual' for it")
        norms = jnp.linalg.norm(start.astype(jnp.float32), axis=-1, keepdims=True)
        direction = random_direction(start.shape[-1], seed).reshape(1, 1, -1)
        return mean_squared_distance(scores[FORGET], scale * norms * direction), {}

    return Part((FORGET,), value, {FORGET: frozenset({"residual"})}, residual=layer)


def _check_coefficient(value: float) -> None:
    if not value > 0:
        raise UserError(f"rmu: the steering coefficient must be above 0, got {value}")
