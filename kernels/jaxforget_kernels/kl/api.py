"""The public function: checks shapes, chooses the block, calls the blocked form."""

import math

from jax import Array

from jaxforget_kernels.blocks import block_length
from jaxforget_kernels.checks import check_projection
from jaxforget_kernels.kl.xla import blocked


def linear_kl(
    hidden_p: Array,
    weight_p: Array,
    hidden_q: Array,
    weight_q: Array,
    *,
    bias_p: Array | None = None,
    bias_q: Array | None = None,
    softcap_p: float | None = None,
    softcap_q: float | None = None,
    block: int | None = None,
) -> Array:
    """KL(p || q) of two distributions softmax(hidden @ weight.T + bias) at each position.

    Args:
      hidden_p: `[..., T, Dp]`, any floating dtype; the products run in this dtype with float32
        accumulation, everything after them in float32.
      weight_p: `[V, Dp]`, cast to the dtype of `hidden_p`.
      hidden_q: `[..., T, Dq]`, same leading axes; the widths may differ.
      weight_q: `[V, Dq]`, same V.
      bias_p, bias_q: `[V]` or None.
      softcap_p, softcap_q: logits become softcap * tanh(logits / softcap), bias included; None:
        unchanged.
      block: positions of T that are in memory at once as two `[..., block, V]` arrays of logits,
        static. None: chosen by `blocks.block_length`, all of T where that is small.
    Returns:
      float32 `[..., T]`, nats, >= 0 up to rounding; exactly 0 where the arguments are equal, and
      infinite where q gives no probability to a word that p allows.
    Raises:
      ValueError: shapes that do not fit, or `block` < 1.

    Differentiable in the arguments of both p and q: in reverse (any cotangent), and forward over
    reverse; plain forward mode is not defined. Between the passes only the arguments and three
    numbers a position are kept.
    """
    check_projection("_p", hidden_p, weight_p, bias_p)
    check_projection("_q", hidden_q, weight_q, bias_q)
    shape, vocab = hidden_p.shape[:-1], weight_p.shape[0]
    if hidden_q.shape[:-1] != shape:
        raise ValueError(f"hidden_q {hidden_q.shape} must match hidden_p {hidden_p.shape} but in D")
    if weight_q.shape[0] != vocab:
        raise ValueError(f"weight_q has {weight_q.shape[0]} words, weight_p {vocab}")
    rows, length = math.prod(shape[:-1]), shape[-1]
    p = hidden_p.reshape(rows, length, hidden_p.shape[-1]), weight_p, bias_p
    q = hidden_q.reshape(rows, length, hidden_q.shape[-1]), weight_q, bias_q
    # two arrays of logits share the budget of one
    chosen = block_length(rows, length, 2 * vocab, block)
    return blocked(p, q, (softcap_p, softcap_q), chosen).reshape(shape)
