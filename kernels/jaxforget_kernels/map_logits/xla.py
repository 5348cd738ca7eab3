"""Blocked form: a block's logits are computed again in the backward pass."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget_kernels.blocks import scan_blocks
from jaxforget_kernels.projection import logits


def blocked(
    fn: Callable[..., Array],
    hiddens: Sequence[Array],
    heads: Sequence[tuple[Array, Array | None, float | None]],
    columns: Sequence[Array],
    block: int,
) -> Array:
    """`fn` of the logits of every position.

    Args:
      fn: see `api.map_logits`.
      hiddens: `[N, T, D]` of each distribution.
      heads: (weight `[V, D]`, bias `[V]` or None, softcap) of each.
      columns: `[N, T, ...]`.
      block: positions per block, static.
    Returns:
      `[N, T, ...]`.
    """

    def body(carry: None, blocks: tuple, _: None) -> tuple[None, Array]:
        states, extra = blocks
        shape = states[0].shape[:2]
        flat = [
            _logits(hidden.reshape(-1, hidden.shape[-1]), *head)
            for hidden, head in zip(states, heads, strict=True)
        ]
        out = fn(*flat, *(column.reshape(-1, *column.shape[2:]) for column in extra))
        return carry, out.reshape(*shape, *out.shape[1:])

    # gradients of the weights then add up in float32 over the blocks
    heads = [(weight.astype(jnp.float32), bias, cap) for weight, bias, cap in heads]
    # inside a loop nothing can be shared with the forward pass anyway
    alone = hiddens[0].shape[1] <= block
    again = jax.checkpoint(body, prevent_cse=alone)
    return scan_blocks(again, None, block, (tuple(hiddens), tuple(columns)))[1]


def _logits(hidden: Array, weight: Array, bias: Array | None, softcap: float | None) -> Array:
    out = _product(hidden, weight)
    if bias is not None:
        out = out + bias.astype(out.dtype)[None, :]
    return out if softcap is None else softcap * jnp.tanh(out / softcap)


@jax.custom_jvp
def _product(hidden: Array, weight: Array) -> Array:
    """hidden @ weight.T in float32, from operands in the dtype of `hidden`."""
    return logits(hidden, weight, None, None)


@_product.defjvp
def _product_tangent(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """A product in the dtype of `hidden` again, so that its transpose, the gradient, is one too."""
    (hidden, weight), (to_hidden, to_weight) = primals, tangents
    precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None

    def product(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b.astype(hidden.dtype).T, precision=precision)

    tangent = product(to_hidden, weight) + product(hidden, to_weight)
    return _product(hidden, weight), tangent.astype(jnp.float32)
