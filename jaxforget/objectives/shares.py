"""Means that add up: a batch's share of a mean over the whole optimizer step."""

import jax.numpy as jnp
from jax import Array

from jaxforget.engine.types import Scores, Totals


def counts(scores: Scores) -> Totals:
    """The denominators of a batch's means: those of its step where known, else its own.

    Args:
      scores: see `Scores`; `totals` is set on the micro-batches of a step.
    """
    if scores.totals is not None:
        return scores.totals
    return Totals(tokens=labelled_count(scores), examples=example_count(scores))


def labelled_count(scores: Scores) -> Array:
    """Labelled targets of this batch, float32 scalar."""
    return scores.mask.astype(jnp.float32).sum()


def example_count(scores: Scores) -> Array:
    """Examples of this batch, float32 scalar."""
    return (scores.example >= 0).astype(jnp.float32).sum()


def share(values: Array, mask: Array, count: Array) -> Array:
    """Sum of the counted values over a count, which may span more batches than this one.

    Args:
      values: float32, any shape.
      mask: same shape, bool or weights; where it is 0 the value does not matter, not even NaN.
      count: float32 scalar; 0 makes the share of an empty batch 0.
    Returns:
      Scalar float32.
    """
    # selected before they are multiplied, so that neither value nor gradient sees a masked NaN
    counted = jnp.where(mask != 0, values, 0.0) * mask.astype(values.dtype)
    return counted.sum() / jnp.where(count > 0, count, 1.0)


def masked_mean(values: Array, mask: Array | None) -> Array:
    """Mean over the counted values; 0 where none is counted.

    Args:
      values: float32, any shape.
      mask: same shape, bool or weights >= 0; None counts all.
    Returns:
      Scalar float32.
    """
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    return share(values, mask, mask.astype(jnp.float32).sum())
