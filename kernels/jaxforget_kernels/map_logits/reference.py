"""The plain form: all logits at once."""

from collections.abc import Callable, Sequence
from typing import Any

from jax import Array

from jaxforget_kernels.projection import logits


def map_logits(
    fn: Callable[..., Any], projections: Sequence[tuple], columns: Sequence[Array] = ()
) -> Any:
    """See `api.map_logits`."""
    shape = projections[0][0].shape[:-1]
    flat = [
        logits(hidden.reshape(-1, hidden.shape[-1]), weight, bias, softcap)
        for hidden, weight, bias, softcap in projections
    ]
    out = fn(*flat, *(column.reshape(-1, *column.shape[len(shape) :]) for column in columns))
    return out.reshape(*shape, *out.shape[1:])
