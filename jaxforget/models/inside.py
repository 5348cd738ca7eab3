"""Running a stack of layers while looking into some of them, or pushing what one gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Push

type Body = Callable[[Array, Any], tuple[Array, tuple[Array | None, Array | None]]]
"""(residual stream, one layer) -> (residual stream behind it, (input of its `mlp/down`, norms of
its attention's values `[B, L]`))."""


@dataclass(frozen=True)
class Look:
    """What is asked of inner layers; layers count from 0, negative from the last.

    Attributes:
      residual: layer whose output is wanted, or None.
      mlp_inner: layer of which the input of `mlp/down` is wanted, or None.
      push: see `Push`, or None.
      values: first layers of which the norms of attention's values are wanted; 0: none.
      every: what is wanted of the residual stream `[B, L, D]` behind every layer, before any push:
        a function to arrays, or None.
    """

    residual: int | None = None
    mlp_inner: int | None = None
    push: Push | None = None
    values: int = 0
    every: Callable[[Array], Any] | None = None


NOTHING = Look()


class Inside(NamedTuple):
    """What was asked for: `[B, L, D]`, `[B, L, F]`, `[B, L, n]`, and what `every` gives with the
    layers on axis 0; or None. See `Look`."""

    residual: Array | None
    mlp_inner: Array | None
    values: Array | None
    every: Any = None


def run_layers(
    body: Body,
    x: Array,
    stack: Any,
    count: int,
    look: Look,
    remat: Callable[[Any], Any],
    *,
    unroll: bool = False,
) -> tuple[Array, Inside]:
    """All layers in turn, in scans that end where one is looked into or pushed.

    Args:
      body: one layer.
      x: what goes into the first, `[B, L, D]`.
      stack: pytree whose leaves hold the layers on axis 0.
      count: of the layers.
      look: see `Look`.
      remat: says what of the body the backward pass computes again.
      unroll: see `Compute`.
    Returns:
      What the last layer gives, and what was asked for. Nobody pays for what nobody reads.
    Raises:
      UserError: no such layer.
    """

    def scan(x: Array, start: int, stop: int, *, looking: bool = False) -> tuple[Array, Any]:
        def one(x: Array, layer: Any) -> tuple[Array, tuple[Array | None, Array | None, Any]]:
            x, (inner, norms) = body(x, layer)
            seen = None if look.every is None else look.every(x)
            return x, (inner if looking else None, norms if look.values else None, seen)

        whole = stop - start == count
        part = stack if whole else jax.tree.map(lambda leaf: leaf[start:stop], stack)
        if start == stop:
            return x, None
        x, (inner, norms, seen) = jax.lax.scan(remat(one), x, part, unroll=unroll)
        parts.append(norms)
        told.append(seen)
        return x, inner

    wanted = look.residual, look.mlp_inner, None if look.push is None else look.push.layer
    out, into, pushed = (None if each is None else layer_index(each, count) for each in wanted)
    parts: list[Array | None] = []
    told: list[Any] = []
    states = inner = None
    done = 0
    for layer in sorted({each for each in (out, into, pushed) if each is not None}):
        if layer == into:
            x, _ = scan(x, done, layer)
            x, (inner,) = scan(x, layer, layer + 1, looking=True)  # one layer
        else:
            x, _ = scan(x, done, layer + 1)
        if layer == pushed and look.push is not None:
            x = _pushed(x, look.push)
        states, done = (x if layer == out else states), layer + 1
    x, _ = scan(x, done, count)
    norms = None
    if look.values:
        found = jnp.concatenate([each for each in parts if each is not None])
        norms = jnp.moveaxis(found[: look.values], 0, -1)
    every = None
    if look.every is not None:
        every = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *told)
    return x, Inside(states, inner, norms, every)


def _pushed(x: Array, push: Push) -> Array:
    # compared, not scattered: rows may lie on several devices
    here = jnp.arange(x.shape[1])[None, :] == push.at[:, None]
    return x + jnp.where(here[:, :, None], push.by.astype(x.dtype)[:, None, :], 0)


def layer_index(layer: int, count: int) -> int:
    """The layer counted from 0.

    Args:
      layer: negative from the last.
      count: of layers.
    Raises:
      UserError: no such layer.
    """
    if not -count <= layer < count:
        raise UserError(f"layer {layer}: the model has layers 0 to {count - 1}")
    return layer % count
