"""The public function: checks shapes, chooses the block, calls the blocked form."""

import math
from collections.abc import Callable, Sequence

from jax import Array

from jaxforget_kernels.blocks import block_length
from jaxforget_kernels.checks import check_projection
from jaxforget_kernels.map_logits.xla import blocked

type Projection = tuple[Array, Array, Array | None, float | None]
"""Hidden states `[..., T, D]`, weight `[V, D]`, bias `[V]` or None, softcap or None."""


def map_logits(
    fn: Callable[..., Array],
    projections: Sequence[Projection],
    columns: Sequence[Array] = (),
    *,
    block: int | None = None,
) -> Array:
    """Apply a function to each position's logits, of one or several models.

    For losses that `linear_cross_entropy` and `linear_kl` do not cover: those two keep less
    between the passes and are to be preferred where they fit.

    Args:
      fn: (float32 logits `[R, V]` of each projection, columns `[R, ...]`) -> `[R, ...]`, row by
        row: row r of the result depends on row r of the arguments alone. Differentiable.
      projections: (hidden, weight, bias, softcap) of each model; the products run in the dtype of
        `hidden` with float32 accumulation. Leading axes `[..., T]` are the same for all.
      columns: `[..., T, ...]`, such as targets.
      block: positions of T whose logits are in memory at once, static; None: chosen.
    Returns:
      `[..., T, ...]`, whatever `fn` returns for each position.
    Raises:
      ValueError: no projection, shapes that do not fit, or `block` < 1.

    Differentiable in reverse (any cotangent) and forward over reverse. Between the passes only
    the arguments are kept; the logits are computed twice.
    """
    if not projections:
        raise ValueError("map_logits needs at least one projection")
    shape = projections[0][0].shape[:-1]
    for index, (hidden, weight, bias, _) in enumerate(projections):
        check_projection(f"[{index}]", hidden, weight, bias)
        if hidden.shape[:-1] != shape:
            raise ValueError(f"hidden[{index}] {hidden.shape} must begin with {shape}")
    for index, column in enumerate(columns):
        if column.shape[: len(shape)] != shape:
            raise ValueError(f"columns[{index}] {column.shape} must begin with {shape}")
    rows, length = math.prod(shape[:-1]), shape[-1]
    words = sum(weight.shape[0] for _, weight, _, _ in projections)
    out = blocked(
        fn,
        [hidden.reshape(rows, length, hidden.shape[-1]) for hidden, *_ in projections],
        [(weight, bias, softcap) for _, weight, bias, softcap in projections],
        [column.reshape(rows, length, *column.shape[len(shape) :]) for column in columns],
        block_length(rows, length, words, block),
    )
    return out.reshape(*shape, *out.shape[2:])
