"""Blocks of positions: the loop that keeps [positions, vocabulary] arrays small.

Only the position axis T is divided. The leading rows N may be sharded over devices, and so may
the vocabulary: a loop over either would make every device walk through all of it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

CPU_BUDGET = 2**24
"""Logits of a block per device, on the host: 64 MiB of float32."""

CPU_WHOLE = 2**26
"""And of all positions in one block: without a loop XLA merges the forward and the backward pass'
logits, one product in four (timed: a step's output projection takes 0.7 of the time)."""

ACCELERATOR_BUDGET = 2**27
"""Elsewhere: 512 MiB, a thousand positions at V = 128k, so that the products stay bound by
arithmetic and not by reading the weight. (Reckoned, not yet timed.)"""


def block_length(rows: int, length: int, vocab: int, block: int | None) -> int:
    """Positions per block.

    Args:
      rows: leading rows N that every block spans.
      length: positions T of a row.
      vocab: vocabulary V.
      block: the caller's wish, >= 1; None: T where N * T * V is within `CPU_WHOLE`, or the
        accelerators' budget, times the devices of the mesh in use (one block and no loop), else
        the longest within the budget, evened out over the blocks. Long blocks matter on a mesh:
        rows divided over devices cost a sum of the weight's gradient over them in every block.
    Returns:
      Between 1 and max(T, 1).
    Raises:
      ValueError: `block` is below 1.
    """
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1 position, got {block}")
    length = max(length, 1)
    if block is not None:
        return min(block, length)
    on_host = jax.default_backend() == "cpu"
    if on_host and rows * length * vocab <= CPU_WHOLE * _devices():
        return length
    budget = (CPU_BUDGET if on_host else ACCELERATOR_BUDGET) * _devices()
    count = -(-length // max(1, budget // max(1, rows * vocab)))
    return -(-length // count)


def on_one_device() -> bool:
    """Whether no axis of the mesh in use divides arrays."""
    return _devices() == 1


def _devices() -> int:
    """Devices that share a call's arrays: those of `jax.set_mesh`, less axes already mapped."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(n for axis, n in mesh.shape.items() if axis not in mesh.manual_axes)


def scan_blocks(
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    block: int,
    repeated: Any,
    zeroed: Any = None,
) -> tuple[Any, Any]:
    """Run `body` over blocks of axis 1, carrying a value along.

    Args:
      body: (carry, blocks of `repeated`, blocks of `zeroed`) -> (carry, outputs `[N, block, ..]`).
      carry: initial value; its dtypes and shapes must not change.
      block: positions per block.
      repeated: pytree of `[N, T, ...]`; a last short block is filled with its last position, so
        that the filling is as finite as the data.
      zeroed: the same, filled with zeros: cotangents, so that the filling has no gradient.
    Returns:
      (last carry, outputs `[N, T, ...]`).
    """
    length = jax.tree.leaves(repeated)[0].shape[1]
    if length <= block:
        return body(carry, repeated, zeroed)
    count = -(-length // block)
    xs = _divide(repeated, count, block, "edge"), _divide(zeroed, count, block, "constant")
    carry, outputs = jax.lax.scan(lambda c, x: body(c, *x), carry, xs)

    def join(leaf: jax.Array) -> jax.Array:
        leaf = leaf.swapaxes(0, 1)
        return leaf.reshape(leaf.shape[0], count * block, *leaf.shape[3:])[:, :length]

    return carry, jax.tree.map(join, outputs)


def _divide(tree: Any, count: int, block: int, mode: str) -> Any:
    """Leaves `[N, T, ...]` -> `[count, N, block, ...]`."""

    def divide(leaf: jax.Array) -> jax.Array:
        widths = [(0, 0)] * leaf.ndim
        widths[1] = (0, count * block - leaf.shape[1])
        leaf = jnp.pad(leaf, widths, mode=mode)
        return leaf.reshape(leaf.shape[0], count, block, *leaf.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(divide, tree)
