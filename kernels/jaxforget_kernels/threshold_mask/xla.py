"""The form that runs: the threshold is found by bisection on the bits of the magnitudes.

As integers they have the same order, so the threshold is exact; nothing is sorted, copied or
gathered, and the result is the same under any sharding. The arrays are read at most 31 times.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def threshold_mask(arrays: Sequence[Array], count: int) -> list[Array]:
    """See `jaxforget_kernels.threshold_mask`."""
    if count == 0:
        return [jnp.zeros(array.shape, bool) for array in arrays]
    bits = [_magnitude_bits(array) for array in arrays]

    def search(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, _ = state
        middle = low + (high - low) // 2
        enough, exact = _compare([(b >= middle).sum(dtype=jnp.int32) for b in bits], count)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle), exact

    bounds = (jnp.int32(0), jnp.int32(2**31 - 1), jnp.array(False))
    low, _, _ = jax.lax.while_loop(
        lambda state: (state[1] - state[0] > 1) & ~state[2], search, bounds
    )
    return [b >= low for b in bits]


def _magnitude_bits(array: Array) -> Array:
    return jax.lax.bitcast_convert_type(jnp.abs(array.astype(jnp.float32)), jnp.int32)


def _compare(counts: Sequence[Array], wanted: int) -> tuple[Array, Array]:
    """(sum >= wanted, sum == wanted) for sums beyond int32, in two parts of 16 and more bits."""
    low = sum((c & 0xFFFF for c in counts), jnp.int32(0))
    high = sum((c >> 16 for c in counts), low >> 16)
    low = low & 0xFFFF
    goal_high, goal_low = wanted >> 16, wanted & 0xFFFF
    same = high == goal_high
    return (high > goal_high) | (same & (low >= goal_low)), same & (low == goal_low)
