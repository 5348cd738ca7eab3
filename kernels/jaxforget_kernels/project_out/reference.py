"""The plain form: everything written out as one tall matrix."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

_HIGHEST = jax.lax.Precision.HIGHEST


def project_out(basis: Sequence[Array], arrays: Sequence[Array]) -> list[Array]:
    """See `jaxforget_kernels.project_out`."""
    k = basis[0].shape[0]
    batched = arrays[0].ndim == basis[0].ndim
    count = arrays[0].shape[0] if batched else 1
    q = jnp.concatenate([u.astype(jnp.float32).reshape(k, -1) for u in basis], axis=1).T
    g = jnp.concatenate([a.astype(jnp.float32).reshape(count, -1) for a in arrays], axis=1).T
    rest = (g - jnp.dot(q, jnp.dot(q.T, g, precision=_HIGHEST), precision=_HIGHEST)).T
    made, start = [], 0
    for array in arrays:
        size = array.size // count
        made.append(rest[:, start : start + size].reshape(array.shape).astype(array.dtype))
        start += size
    return made
