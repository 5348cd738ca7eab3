"""The public function: checks shapes, chooses the block, calls the blocked form."""

import math
from typing import Literal, overload

from jax import Array

from jaxforget_kernels.blocks import block_length
from jaxforget_kernels.checks import check_projection
from jaxforget_kernels.cross_entropy.xla import blocked

type Statistics = tuple[Array, Array, Array]


@overload
def linear_cross_entropy(
    hidden: Array,
    weight: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float | None = None,
    stats: Literal[False] = False,
    block: int | None = None,
) -> Array: ...


@overload
def linear_cross_entropy(
    hidden: Array,
    weight: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float | None = None,
    stats: Literal[True],
    block: int | None = None,
) -> tuple[Array, Statistics]: ...


@overload
def linear_cross_entropy(
    hidden: Array,
    weight: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float | None = None,
    stats: bool,
    block: int | None = None,
) -> Array | tuple[Array, Statistics]: ...


def linear_cross_entropy(
    hidden: Array,
    weight: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float | None = None,
    stats: bool = False,
    block: int | None = None,
) -> Array | tuple[Array, Statistics]:
    """Log-probability of each target under softmax(hidden @ weight.T + bias).

    Args:
      hidden: `[..., T, D]`, any floating dtype; the products run in this dtype with float32
        accumulation, everything after them in float32.
      weight: `[V, D]`, tied embedding or separate head; cast to the dtype of `hidden`.
      targets: int32 `[..., T]`, same leading axes. A negative target is ignored: log-probability
        0, hit 0, no gradient. A target >= V answers NaN (and no gradient): it is a fault of the
        data that a loss must not hide.
      bias: `[V]` or None; -inf forbids a word.
      softcap: logits become softcap * tanh(logits / softcap), bias included; None: unchanged.
      stats: also return statistics of each position's distribution, without gradient.
      block: positions of T that are in memory at once as `[..., block, V]` logits, static; as many
        logits, of all positions and some words, in the backward pass on one device.
        None: chosen by `blocks.block_length`, all of T where that is small.
    Returns:
      float32 `[..., T]`, nats; with `stats` a pair of it and (hit, mean, second_moment), each
      float32 `[..., T]`: 1 where the target is the arg-max (of equal logits the lowest index),
      E_p[log p], E_p[(log p)^2].
    Raises:
      ValueError: shapes that do not fit, or `block` < 1.

    Over several devices call it under `jax.set_mesh`: blocks are of positions then alone, so that
    rows and words may lie anywhere.
    Differentiable in `hidden`, `weight` and `bias`: in reverse (any cotangent), and forward over
    reverse; plain forward mode is not defined. Between the passes only the arguments and one
    logsumexp a position are kept. Where one block holds all of T, XLA merges the recomputed
    product with the forward one inside one program, so that keeping the softmax gains nothing
    (timed on two CPU cores, V = 1024 to 49152, both dtypes: at most 1 % of CPU time less).
    """
    check_projection("", hidden, weight, bias)
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(f"targets {targets.shape} must match hidden {hidden.shape} without D")
    rows, length = math.prod(hidden.shape[:-2]), hidden.shape[-2]
    flat = hidden.reshape(rows, length, hidden.shape[-1])
    chosen = block_length(rows, length, weight.shape[0], block)
    logp, about = blocked(flat, weight, bias, targets.reshape(rows, length), softcap, stats, chosen)
    if about is None:
        return logp.reshape(targets.shape)
    hit, mean, second = (column.reshape(targets.shape) for column in about)
    return logp.reshape(targets.shape), (hit, mean, second)
