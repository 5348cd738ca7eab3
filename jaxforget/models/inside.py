"""Running a stack of layers while looking into some of them, or pushing what one gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Push
from jaxforget.models.config import FEW_PLACES
from jaxforget.models.layers import take

type Body = Callable[[Array, Any, Array | None], tuple[Array, tuple[Array | None, Array | None]]]
"""(residual stream, one layer, places wanted or None) -> (residual stream behind it there, (input
of its `mlp/down` there, norms of its attention's values `[B, L]`))."""


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
    """What was asked for: `[B, T, D]` and `[B, T, F]` at the T wanted places, `[B, L, n]`, and what
    `every` gives with the layers on axis 0; or None. See `Look`."""

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
    at: Array | None = None,
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
      at: int32 `[B, T]`, the places of which the output is wanted; None: all of them. A layer whose
        output only is read there computes the others' keys and values, and no more.
      unroll: layers are written out instead of looped over; of a loop the last is no layer apart.
    Returns:
      What the last layer gives, `[B, T, D]`, and what was asked for. Nobody pays for what nobody
      reads.
    Raises:
      UserError: no such layer.
    """

    walk = _Walk(body, stack, count, look, remat, at, unroll)
    few = at is not None and at.shape[1] <= FEW_PLACES * x.shape[1] and look.every is None
    asked = look.residual, look.mlp_inner, None if look.push is None else look.push.layer
    out, into, pushed = (None if each is None else layer_index(each, count) for each in asked)
    states = inner = None
    done = 0
    for layer in sorted({each for each in (out, into, pushed) if each is not None}):
        if layer == into or (layer == out and few):
            x, _ = walk.scan(x, done, layer)
            done = layer
        before = x
        x, found = walk.scan(x, done, layer + 1, looking=layer == into)
        done = layer + 1
        if layer == into:
            inner = walk.wanted(found[0])  # of one layer
        if layer == pushed and look.push is not None:
            x = _pushed(x, look.push)
        if layer == out:
            alone = few and layer != pushed
            states = walk.there(before, layer)[0] if alone else walk.wanted(x)
    if few and unroll and done < count:
        x, _ = walk.scan(x, done, count - 1)
        x, norms = walk.there(x, count - 1)
        walk.norms.append(norms)
    else:
        x, _ = walk.scan(x, done, count)
        x = walk.wanted(x)
    norms = None
    if look.values:
        norms = jnp.concatenate([each for each in walk.norms if each is not None])
        norms = jnp.moveaxis(norms[: look.values], 0, -1)
    every = None
    if look.every is not None:
        every = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *walk.seen)
    return x, Inside(states, inner, norms, every)


@dataclass(frozen=True)
class _Walk:
    """Arguments of `run_layers`, and what its scans have seen so far."""

    body: Body
    stack: Any
    count: int
    look: Look
    remat: Callable[[Any], Any]
    at: Array | None
    unroll: bool
    norms: list[Array | None] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)

    def scan(self, x: Array, start: int, stop: int, *, looking: bool = False) -> tuple[Array, Any]:
        """Layers from `start` to before `stop` at all places; their inner states if `looking`."""

        def one(x: Array, layer: Any) -> tuple[Array, tuple[Array | None, Array | None, Any]]:
            x, (inner, norms) = self.body(x, layer, None)
            seen = None if self.look.every is None else self.look.every(x)
            return x, (inner if looking else None, norms if self.look.values else None, seen)

        if start == stop:
            return x, None
        whole = stop - start == self.count
        part = self.stack if whole else jax.tree.map(lambda leaf: leaf[start:stop], self.stack)
        x, (inner, norms, seen) = jax.lax.scan(self.remat(one), x, part, unroll=self.unroll)
        self.norms.append(norms)
        self.seen.append(seen)
        return x, inner

    def there(self, x: Array, layer: int) -> tuple[Array, Array | None]:
        """One layer at the wanted places, and the norms of its values."""

        def one(x: Array, layer: Any) -> tuple[Array, Array | None]:
            x, (_, norms) = self.body(x, layer, self.at)
            return x, norms if self.look.values else None

        x, norms = self.remat(one)(x, jax.tree.map(lambda leaf: leaf[layer], self.stack))
        return x, None if norms is None else norms[None]

    def wanted(self, x: Array) -> Array:
        """`[B, L, ...]` at the wanted places."""
        return x if self.at is None else take(x, self.at)


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
