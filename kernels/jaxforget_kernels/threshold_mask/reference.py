"""The plain form: sorts everything."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def threshold_mask(arrays: Sequence[Array], count: int) -> list[Array]:
    """See `jaxforget_kernels.threshold_mask`."""
    if count == 0:
        return [jnp.zeros(array.shape, bool) for array in arrays]
    # as integers, which have the same order: backends compare subnormal floats as if they were 0
    sizes = [
        jax.lax.bitcast_convert_type(jnp.abs(array.astype(jnp.float32)), jnp.int32)
        for array in arrays
    ]
    together = jnp.sort(jnp.concatenate([each.ravel() for each in sizes]))
    return [each >= together[-count] for each in sizes]
