"""Which places of a row go through the output head."""

import jax.numpy as jnp
from jax import Array

from jaxforget.engine.types import TokenBatch


def slots_of(batch: TokenBatch) -> Array | None:
    """Places of every row that go through the head, int32 `[B, T]`; None: all of them."""
    if batch.slots is not None or batch.max_targets is None:
        return batch.slots
    return labelled_slots(batch.mask, batch.max_targets)


def labelled_slots(mask: Array, count: int) -> Array:
    """Positions of the labelled slots of every row, in order, then of others: int32 [B, count].

    Args:
      mask: `[B, L]`, not 0 where labelled.
      count: at most L (ValueError otherwise).
    """
    if count > mask.shape[1]:
        raise ValueError(f"max_targets {count} exceeds the row length {mask.shape[1]}")
    return jnp.argsort(mask == 0, axis=1, stable=True)[:, :count]
