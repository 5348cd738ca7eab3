"""Blocks of words: gradients through output projections, some of the vocabulary at a time.

Each word's gradient is made once and written where it belongs, and the weight is read once. Over
several devices every one of them would walk through the others' words.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget_kernels.projection import logits, pull_back


class Projection(NamedTuple):
    """Arguments of `logits`: hidden `[R, D]`, weight `[V, D]`, bias `[V]` or None, soft-cap."""

    hidden: Array
    weight: Array
    bias: Array | None
    softcap: float | None


class Gradients(NamedTuple):
    """Of hidden, float32 `[R, D]`, of the weight in its dtype, and of the bias, float32 `[V]`."""

    hidden: Array
    weight: Array
    bias: Array


def pull_back_by_words(
    sides: Sequence[Projection],
    cotangents: Callable[[list[Array], Array], Sequence[Array]],
    width: int,
) -> list[Gradients]:
    """Gradients of projections onto one vocabulary, `width` <= V words at a time.

    From the last words to the first: where `width` does not divide V, the last block reaches back
    into the words of the one before, with gradients of 0, which that one then overwrites.

    Args:
      sides: of the projections; their logits of a block of words exist together.
      cotangents: (logits of each, float32 `[R, width]`, index of each word, int32 the same) ->
        cotangents of each's logits.
      width: words of a block.
    """
    vocab = sides[0].weight.shape[0]
    count = -(-vocab // width)

    def body(i: Array, carry: list[Gradients]) -> list[Gradients]:
        own = (count - 1 - i) * width
        start = jnp.minimum(own, vocab - width)
        parts = [_words(side, start, width) for side in sides]
        capped = [logits(*part) for part in parts]
        word = start + jax.lax.broadcasted_iota(jnp.int32, capped[0].shape, 1)
        made = []
        seeds = cotangents(capped, word)
        for total, part, z, seed in zip(carry, parts, capped, seeds, strict=True):
            seed = jnp.where(word >= own, seed, 0.0)
            more = Gradients(*pull_back(seed, z, part.hidden, part.weight, part.softcap))
            made.append(_added(total, more, start))
        return made

    zeros = [
        Gradients(
            jnp.zeros(side.hidden.shape, jnp.float32), jnp.zeros_like(side.weight), jnp.zeros(vocab)
        )
        for side in sides
    ]
    return jax.lax.fori_loop(0, count, body, zeros)


def _words(side: Projection, start: Array, width: int) -> Projection:
    cut = jax.lax.dynamic_slice_in_dim
    bias = None if side.bias is None else cut(side.bias, start, width)
    return side._replace(weight=cut(side.weight, start, width), bias=bias)


def _added(total: Gradients, more: Gradients, start: Array) -> Gradients:
    put = jax.lax.dynamic_update_slice_in_dim
    return Gradients(
        total.hidden + more.hidden,
        put(total.weight, more.weight.astype(total.weight.dtype), start, 0),
        put(total.bias, more.bias, start, 0),
    )
