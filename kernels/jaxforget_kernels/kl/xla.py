"""Blocked form: no array of positions x vocabulary outlives its block, forward or backward.

On one device the backward pass' blocks are of words, not positions, see `words`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget_kernels.blocks import on_one_device, scan_blocks
from jaxforget_kernels.projection import logits, pull_back
from jaxforget_kernels.words import Projection, pull_back_by_words

type Side = tuple[Array, Array, Array | None]
"""Hidden states `[N, T, D]`, weight `[V, D]`, bias `[V]` or None of one distribution."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def blocked(p: Side, q: Side, softcaps: tuple[float | None, float | None], block: int) -> Array:
    """KL(p || q) of each position, float32 `[N, T]`.

    Args:
      p, q: the two distributions; widths D may differ.
      softcaps: of p and q, static.
      block: positions per block, static.
    """
    return _forward(p, q, softcaps, block)[0]


def _forward(
    p: Side, q: Side, softcaps: tuple[float | None, float | None], block: int
) -> tuple[Array, tuple]:
    weight_p, weight_q = _cast(p), _cast(q)

    def body(carry: None, blocks: tuple[Array, Array], _: None) -> tuple[None, tuple]:
        shape = blocks[0].shape[:2]
        zp = logits(_rows(blocks[0]), weight_p, p[2], softcaps[0])
        zq = logits(_rows(blocks[1]), weight_q, q[2], softcaps[1])
        lse_p, lse_q = jax.nn.logsumexp(zp, axis=-1), jax.nn.logsumexp(zq, axis=-1)
        kl = _divergence(zp - lse_p[:, None], zq - lse_q[:, None])
        return carry, tuple(leaf.reshape(shape) for leaf in (kl, lse_p, lse_q))

    _, (kl, lse_p, lse_q) = scan_blocks(body, None, block, (p[0], q[0]))
    return kl, (p, q, kl, lse_p, lse_q)


def _divergence(logp: Array, logq: Array) -> Array:
    """Sum over the last axis of p log(p / q) - p + q.

    The added terms sum to zero, but make every summand >= 0 and of second order in the
    difference: near p = q the rounding of log p and log q does not show.
    """
    p, q = jnp.exp(logp), jnp.exp(logq)
    gap = jnp.where(p > 0, logp - logq, 0.0)
    near = p * (gap + jnp.expm1(-jnp.clip(gap, -1.0, 1.0)))
    return jnp.where(jnp.abs(gap) < 1.0, jnp.where(p > 0, near, q), p * gap - p + q).sum(axis=-1)


def _backward(
    softcaps: tuple[float | None, float | None], block: int, saved: tuple, cotangent: Array
) -> tuple[Side, Side]:
    p, q, kl, lse_p, lse_q = saved
    weight_p, weight_q = _cast(p), _cast(q)
    length = cotangent.shape[1]
    if block < length and on_one_device():
        width = -(-p[1].shape[0] * block // length)  # as many logits at once
        divergence, total_p, total_q, g = (
            each.reshape(-1, 1) for each in (kl, lse_p, lse_q, cotangent)
        )

        def cotangents(capped: list[Array], word: Array) -> tuple[Array, Array]:
            return _seeds(capped[0] - total_p, capped[1] - total_q, divergence, g)

        sides = [
            Projection(_rows(hidden), weight, bias, softcap)
            for (hidden, weight, bias), softcap in zip((p, q), softcaps, strict=True)
        ]
        of_p, of_q = pull_back_by_words(sides, cotangents, width)
        return _side(p, *of_p), _side(q, *of_q)

    def body(carry: tuple, blocks: tuple, g: Array) -> tuple[tuple, tuple[Array, Array]]:
        hidden_p, hidden_q, *columns = blocks
        divergence, total_p, total_q = (column.reshape(-1, 1) for column in columns)
        rows_p, rows_q, g = _rows(hidden_p), _rows(hidden_q), g.reshape(-1, 1)
        zp = logits(rows_p, weight_p, p[2], softcaps[0])
        zq = logits(rows_q, weight_q, q[2], softcaps[1])
        seed_p, seed_q = _seeds(zp - total_p, zq - total_q, divergence, g)
        dp, *more_p = pull_back(seed_p, zp, rows_p, weight_p, softcaps[0])
        dq, *more_q = pull_back(seed_q, zq, rows_q, weight_q, softcaps[1])
        carry = jax.tree.map(jnp.add, carry, (more_p, more_q))
        to_hidden = dp.reshape(hidden_p.shape), dq.reshape(hidden_q.shape)
        return carry, (to_hidden[0].astype(hidden_p.dtype), to_hidden[1].astype(hidden_q.dtype))

    zeros = [[jnp.zeros(w.shape, jnp.float32), jnp.zeros(w.shape[0])] for w in (p[1], q[1])]
    repeated = p[0], q[0], kl, lse_p, lse_q
    (more_p, more_q), (to_p, to_q) = scan_blocks(
        body, (zeros[0], zeros[1]), block, repeated, cotangent
    )
    return _side(p, to_p, *more_p), _side(q, to_q, *more_q)


def _seeds(logp: Array, logq: Array, divergence: Array, g: Array) -> tuple[Array, Array]:
    """Cotangents of the logits of p and q, from those of the divergence."""
    prob = jnp.exp(logp)
    gap = jnp.where(prob > 0, logp - logq, 0.0)
    return g * prob * (gap - divergence), g * (jnp.exp(logq) - prob)


def _cast(side: Side) -> Array:
    """The weight in the dtype of the product: once, not in every block."""
    return side[1].astype(side[0].dtype)


def _rows(hidden: Array) -> Array:
    return hidden.reshape(-1, hidden.shape[-1])


def _side(side: Side, to_hidden: Array, to_weight: Array, to_bias: Array) -> Side:
    """Gradients in the shapes and dtypes of what they belong to."""
    hidden, weight, bias = side
    of_hidden = to_hidden.astype(hidden.dtype).reshape(hidden.shape)
    of_bias = None if bias is None else to_bias.astype(bias.dtype)
    return of_hidden, to_weight.astype(weight.dtype), of_bias


blocked.defvjp(_forward, _backward)
