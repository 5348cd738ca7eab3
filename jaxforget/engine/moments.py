"""Optimizer moments stored in fewer bytes: bfloat16, or 8-bit codes with one scale a row.

Rounding is stochastic, so that a moving average keeps moving: with a decay of 0.999 an update is
often smaller than half a step of either format. The dither is a hash of the entry's own gradient
and parameter, so that it needs no state and is the same however the entries are divided.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

type Kind = Literal["float32", "bfloat16", "int8"]

_SIGNED, _UNSIGNED = 127, 255
_HOLDERS = (optax.ScaleByAdamState, optax.ScaleByLionState, optax.TraceState)


class RowCodes(NamedTuple):
    """A moment of one leaf in 8 bits an entry.

    Attributes:
      codes: int8 for moments with a sign, level k of 127 stands for sign(k) (k / 127)^2 of the
        row's largest magnitude; uint8 for second moments, level k of 255 for (k / 255)^4 of it, and
        0 for 0 alone.
      row_max: largest magnitude of each row (last axis), float32 `[..., 1]`.
    """

    codes: Array
    row_max: Array

    of_one_leaf = True  # see `partwise.is_entries`


def stored_as(core: optax.GradientTransformation, kind: Kind) -> optax.GradientTransformation:
    """An optimizer whose moments are stored in `kind` between updates; it computes in float32.

    Args:
      core: whose moments are `mu`, `nu` or `trace` of optax's Adam, Lion and momentum.
      kind: "float32" is `core` itself; "bfloat16" has half of its bytes, "int8" a quarter.
    """
    if kind == "float32":
        return core

    def init(params: Any) -> Any:
        return _emptied(core.init(params), kind)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found, new = core.update(updates, _decoded(state), params)
        return found, _encoded(new, updates, params, kind)

    return optax.GradientTransformation(init, update)


def _with_moments(state: Any, change: Callable[[Any, str], Any]) -> Any:
    """The state with every moment replaced by `change(its holder, its name)`."""

    def holder(node: Any) -> Any:
        if not isinstance(node, _HOLDERS):
            return node
        return node._replace(**{name: change(node, name) for name in _moments_of(node)})

    return jax.tree.map(holder, state, is_leaf=lambda node: isinstance(node, _HOLDERS))


def _decoded(state: Any) -> Any:
    return _with_moments(
        state, lambda node, name: jax.tree.map(decode, getattr(node, name), is_leaf=_is_codes)
    )


def _encoded(state: Any, gradient: Any, params: Any, kind: Kind) -> Any:
    def moment(node: Any, name: str) -> Any:
        count = node.count if "count" in node._fields else jnp.zeros((), jnp.int32)
        salt = 2 * count + _moments_of(node).index(name)
        return jax.tree.map(
            lambda x, g, p: encode(x, dither(g, p, salt), kind, signed=name != "nu"),
            getattr(node, name),
            gradient,
            params,
        )

    return _with_moments(state, moment)


def _emptied(state: Any, kind: Kind) -> Any:
    """Moments that are all 0, as they begin; XLA would encode its constants for minutes."""

    def zeros(x: Array, signed: bool) -> Any:
        like = jax.eval_shape(lambda x: encode(x, _bits(x), kind, signed=signed), x)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    return _with_moments(
        state,
        lambda node, name: jax.tree.map(lambda x: zeros(x, name != "nu"), getattr(node, name)),
    )


def _moments_of(node: Any) -> list[str]:
    return [name for name in ("mu", "nu", "trace") if name in node._fields]


def _is_codes(node: Any) -> bool:
    return isinstance(node, RowCodes)


def dither(gradient: Array, params: Array, salt: Array) -> Array:
    """Uniform uint32 in the shape of a leaf: a hash of each entry's bits and a number."""
    h = _bits(gradient) * jnp.uint32(0x9E3779B1) ^ _bits(params) * jnp.uint32(0x85EBCA77)
    h = h ^ salt.astype(jnp.uint32) * jnp.uint32(0xC2B2AE3D)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the end of MurmurHash3
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return h ^ (h >> 16)


def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def encode(x: Array, noise: Array, kind: Kind, *, signed: bool) -> Array | RowCodes:
    """A moment in fewer bytes, on average over the noise exactly itself.

    Args:
      x: float32, finite, >= 0 unless `signed`.
      noise: uniform uint32 like `x`.
      kind: "bfloat16" or "int8".
      signed: whether there are negative entries.
    Returns:
      bfloat16 like `x`, or `RowCodes`; of those, entries of a second moment so small that they
      would round to 0 are rounded up.
    """
    x = x.astype(jnp.float32)
    if kind == "bfloat16":
        raised = _bits(x) + (noise & jnp.uint32(0xFFFF))
        return jax.lax.bitcast_convert_type((raised >> 16).astype(jnp.uint16), jnp.bfloat16)
    size = jnp.abs(x)
    row_max = size.max(axis=-1, keepdims=True) if x.ndim else size
    share = size / jnp.where(row_max > 0, row_max, 1.0)
    power, levels = (2, _SIGNED) if signed else (4, _UNSIGNED)
    root = jnp.sqrt(share) if signed else jnp.sqrt(jnp.sqrt(share))
    below = jnp.floor(jnp.minimum(root * levels, levels - 1.0))
    low, high = (((below + step) / levels) ** power for step in (0, 1))
    chance = (share - low) / (high - low)
    level = below + (noise.astype(jnp.float32) * 2.0**-32 < chance)
    if signed:
        return RowCodes((jnp.sign(x) * level).astype(jnp.int8), row_max)
    level = jnp.maximum(level, (x > 0).astype(jnp.float32))  # a moment of 0 divides by epsilon
    return RowCodes(level.astype(jnp.uint8), row_max)


def decode(stored: Array | RowCodes) -> Array:
    """Inverse of `encode`, float32."""
    if not isinstance(stored, RowCodes):
        return stored.astype(jnp.float32)
    if stored.codes.dtype == jnp.uint8:
        return stored.row_max * (stored.codes.astype(jnp.float32) / _UNSIGNED) ** 4
    level = stored.codes.astype(jnp.float32) / _SIGNED
    return stored.row_max * level * jnp.abs(level)
