"""Blocked form: no array of positions x vocabulary outlives its block, forward or backward.

The backward pass recomputes a block's logits from the hidden states and the saved logsumexp:
one more product than autodiff, and O(T) instead of O(T V) memory. On one device its blocks are of
words, not positions, see `words`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget_kernels.blocks import on_one_device, scan_blocks
from jaxforget_kernels.projection import logits, pull_back
from jaxforget_kernels.words import Projection, pull_back_by_words

type Answer = tuple[Array, tuple[Array, Array, Array] | None]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def blocked(
    hidden: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    softcap: float | None,
    stats: bool,
    block: int,
) -> Answer:
    """Log-probability of each target, float32 `[N, T]`, and its statistics or None.

    Args:
      hidden: `[N, T, D]`.
      weight: `[V, D]`.
      bias: `[V]` or None.
      targets: int32 `[N, T]`.
      softcap, stats: static, as in the public function.
      block: positions per block, static.
    """
    return _forward(hidden, weight, bias, targets, softcap, stats, block)[0]


def _forward(
    hidden: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    softcap: float | None,
    stats: bool,
    block: int,
) -> tuple[Answer, tuple]:
    cast = weight.astype(hidden.dtype)  # once, not in every block

    def body(carry: None, blocks: tuple[Array, Array], _: None) -> tuple[None, tuple]:
        rows, wanted = blocks
        shape = wanted.shape
        z = logits(rows.reshape(-1, rows.shape[-1]), cast, bias, softcap)
        out = _score(z, wanted.reshape(-1), stats)
        return carry, jax.tree.map(lambda leaf: leaf.reshape(shape), out)

    _, (logp, lse, about) = scan_blocks(body, None, block, (hidden, targets))
    return (logp, about), (hidden, weight, bias, targets, lse)


def _score(z: Array, targets: Array, stats: bool) -> tuple[Array, Array, tuple | None]:
    """Per position of logits `[R, V]`: log p(target), logsumexp, statistics."""
    vocab = z.shape[-1]
    lse = jax.nn.logsumexp(z, axis=-1)
    # compare and sum instead of a gather: it stays local where the vocabulary is sharded
    index = jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
    picked = jnp.where(index == targets[:, None], z, 0.0).sum(axis=-1)
    outside = jnp.where(targets < 0, 0.0, jnp.nan)
    logp = jnp.where((targets >= 0) & (targets < vocab), picked - lse, outside)
    if not stats:
        return logp, lse, None
    top = z.max(axis=-1)
    # the first of equals counts; sums of floats, which compilers turn into better loops than minima
    # of integers
    before = (z == top[:, None]) & (index < targets[:, None])
    first = jnp.where(before, 1.0, 0.0).sum(axis=-1) == 0
    hit = first & (picked == top) & (targets >= 0) & (targets < vocab)
    every = z - lse[:, None]
    p = jnp.exp(every)
    every = jnp.where(p > 0, every, 0.0)  # 0 log 0 = 0, also where a bias of -inf forbids a word
    return (
        logp,
        lse,
        (hit.astype(jnp.float32), (p * every).sum(axis=-1), (p * every**2).sum(axis=-1)),
    )


def _backward(
    softcap: float | None, stats: bool, block: int, saved: tuple, cotangent: Answer
) -> tuple[Array, Array, Array | None, None]:
    hidden, weight, bias, targets, lse = saved
    vocab = weight.shape[0]
    cast = weight.astype(hidden.dtype)
    # the statistics have no gradient, and neither has a target outside the vocabulary
    inside = (targets >= 0) & (targets < vocab)
    seed = jnp.where(inside, cotangent[0], 0.0)
    if block < targets.shape[1] and on_one_device():
        width = -(-vocab * block // targets.shape[1])  # as many logits at once
        wanted, total, g = (each.reshape(-1, 1) for each in (targets, lse, seed))

        def cotangent_of(capped: list[Array], word: Array) -> list[Array]:
            return [g * ((word == wanted).astype(jnp.float32) - jnp.exp(capped[0] - total))]

        flat = hidden.reshape(-1, hidden.shape[-1])
        side = Projection(flat, weight, bias, softcap)
        (found,) = pull_back_by_words([side], cotangent_of, width)
        return _as_given(hidden, weight, bias, *found)

    def body(
        carry: tuple[Array, Array], blocks: tuple[Array, Array, Array], g: Array
    ) -> tuple[tuple[Array, Array], Array]:
        rows, wanted, total = blocks
        flat = rows.reshape(-1, rows.shape[-1])
        z = logits(flat, cast, bias, softcap)
        index = jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
        target = (index == wanted.reshape(-1, 1)).astype(jnp.float32)
        dz = g.reshape(-1, 1) * (target - jnp.exp(z - total.reshape(-1, 1)))
        to_hidden, to_weight, to_bias = pull_back(dz, z, flat, cast, softcap)
        carry = carry[0] + to_weight, carry[1] + to_bias
        return carry, to_hidden.astype(rows.dtype).reshape(rows.shape)

    zeros = jnp.zeros(weight.shape, jnp.float32), jnp.zeros((vocab,), jnp.float32)
    (to_weight, to_bias), to_hidden = scan_blocks(body, zeros, block, (hidden, targets, lse), seed)
    return _as_given(hidden, weight, bias, to_hidden, to_weight, to_bias)


def _as_given(
    hidden: Array,
    weight: Array,
    bias: Array | None,
    to_hidden: Array,
    to_weight: Array,
    to_bias: Array,
) -> tuple[Array, Array, Array | None, None]:
    """Gradients in the shapes and dtypes of what they belong to; targets have none."""
    of_bias = None if bias is None else to_bias.astype(bias.dtype)
    of_hidden = to_hidden.astype(hidden.dtype).reshape(hidden.shape)
    return of_hidden, to_weight.astype(weight.dtype), of_bias, None


blocked.defvjp(_forward, _backward)
