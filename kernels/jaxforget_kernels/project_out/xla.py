"""The form that runs: products with the basis leaf by leaf, then one subtraction.

The basis and the vectors are read twice, the vectors written once; nothing is concatenated, so that
leaves stay where they lie on a mesh, and only `[k]` numbers are summed over devices.
"""

from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget_kernels.blocks import on_one_device


def shares(basis: Sequence[Array], arrays: Sequence[Array], batched: bool) -> Array:
    """Inner products with the basis over all leaves, float32 `[k]`, batched `[m, k]`."""

    def leaf(u: Array, a: Array) -> Array:
        if on_one_device():  # flat products are twice as fast; on a mesh they would move arrays
            a = a.reshape(*a.shape[: int(batched)], -1)
            u = u.reshape(u.shape[0], -1)
        inner = tuple(range(1, u.ndim))
        outer = tuple(range(int(batched), a.ndim))
        return _dot(a, u, (outer, inner))

    return reduce(jnp.add, map(leaf, basis, arrays))


def subtract(basis: Sequence[Array], arrays: Sequence[Array], amounts: Array) -> list[Array]:
    """Arrays less the basis times `[k]`, batched `[m, k]`, amounts; in the dtypes of the arrays."""

    def leaf(u: Array, a: Array) -> Array:
        flat = u.reshape(u.shape[0], -1) if on_one_device() else u
        part = _dot(amounts, flat, ((amounts.ndim - 1,), (0,))).reshape(a.shape)
        return (a.astype(jnp.float32) - part).astype(a.dtype)

    return list(map(leaf, basis, arrays))


def _dot(a: Array, b: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    # accelerators otherwise round float32 operands to bfloat16 or TF32
    return jax.lax.dot_general(
        a.astype(jnp.float32),
        b.astype(jnp.float32),
        (axes, ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
