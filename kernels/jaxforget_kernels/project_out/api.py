"""The public functions: checks, then the form that runs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget_kernels.project_out import xla


def project_out(
    basis: Sequence[Array], arrays: Sequence[Array], *, gram: Array | None = None
) -> list[Array]:
    """G - Q Q'G for one or several vectors G that are each stored as several arrays.

    Args:
      basis: Q, of every array float `[k, *shape]`: k vectors, orthonormal over all arrays together;
        vectors of zeros are no part of it.
      arrays: G, float `[*shape]` each, or `[m, *shape]` for m vectors at once; any shardings.
      gram: Q'Q, float32 `[k, k]`, where it is known and not quite the identity: corrects the result
        for it, to second order in the difference, without reading Q again.
    Returns:
      Arrays like `arrays`, in their dtypes; computed in float32.
    Raises:
      ValueError: shapes that do not fit.

    Memory is passed over twice: Q and G are read for the products and again for the difference.
    """
    batched = _check(basis, arrays)
    amounts = xla.shares(basis, arrays, batched)
    if gram is not None:  # a step of Newton's iteration for the inverse of the Gram matrix
        rows = amounts.reshape(-1, amounts.shape[-1])
        amounts = (2 * rows - (rows[:, :, None] * gram[None]).sum(axis=1)).reshape(amounts.shape)
    return xla.subtract(basis, arrays, amounts)


def extend_orthonormal(
    basis: Sequence[Array], count: Array, arrays: Sequence[Array], *, least: float = 1e-3
) -> tuple[list[Array], Array]:
    """A basis with the direction of one more vector, if there is room and it is not in the span.

    Args:
      basis: as in `project_out`; the first `count` vectors are in use, the others zeros.
      count: int32 scalar.
      arrays: the vector, float `[*shape]` each.
      least: a vector whose part outside the span is shorter than this share of it adds nothing, as
        does one that is not finite.
    Returns:
      (basis, count) with one more vector, or the same. Only that vector is written where the basis
      is donated.
    Raises:
      ValueError: shapes that do not fit.
    """
    if _check(basis, arrays):
        raise ValueError("extend_orthonormal: one vector at a time, of the basis' shapes")
    wide = [array.astype(jnp.float32) for array in arrays]
    size = _length(wide)
    rest = project_out(basis, project_out(basis, wide))  # the second time removes the rounding
    length = _length(rest)
    room = basis[0].shape[0]
    enters = (count < room) & (length > least * size) & jnp.isfinite(length)
    at = jnp.minimum(count, room - 1)

    def put(u: Array, new: Array) -> Array:
        old = jax.lax.dynamic_index_in_dim(u, at)
        unit = (new / jnp.maximum(length, jnp.finfo(jnp.float32).tiny)).astype(u.dtype)
        return jax.lax.dynamic_update_index_in_dim(u, jnp.where(enters, unit[None], old), at, 0)

    return list(map(put, basis, rest)), count + enters.astype(count.dtype)


def _length(arrays: Sequence[Array]) -> Array:
    return jnp.sqrt(sum((jnp.square(a).sum() for a in arrays), jnp.zeros(())))


def _check(basis: Sequence[Array], arrays: Sequence[Array]) -> bool:
    """Whether there are several vectors."""
    if not basis or len(basis) != len(arrays):
        raise ValueError(f"{len(basis)} arrays of the basis for {len(arrays)} of the vectors")
    several = arrays[0].ndim == basis[0].ndim
    heads = {u.shape[0] for u in basis}, {a.shape[0] for a in arrays} if several else {0}
    for index, (u, a) in enumerate(zip(basis, arrays, strict=True)):
        if u.shape[1:] != a.shape[int(several) :]:
            raise ValueError(f"array {index} is {a.shape}, its basis {u.shape}")
    if any(len(head) > 1 for head in heads):
        raise ValueError("all arrays need the same number of vectors")
    return several
