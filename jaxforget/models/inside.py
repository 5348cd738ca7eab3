"""Running a stack of layers while looking into some of them, or pushing what one gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Push

type Body = Callable[[Array, Any], tuple[Array, Array | None]]
"""(residual stream, one layer) -> (residual stream behind it, input of its `mlp/down`)."""


@dataclass(frozen=True)
class Look:
    """What is asked of inner layers; layers count from 0, negative from the last.

    Attributes:
      residual: layer whose output is wanted, or None.
      mlp_inner: layer of which the input of `mlp/down` is wanted, or None.
      push: see `Push`, or None.
    """

    residual: int | None = None
    mlp_inner: int | None = None
    push: Push | None = None


NOTHING = Look()


class Inside(NamedTuple):
    """What was asked for: `[B, L, D]` and `[B, L, F]`, or None; see `Look`."""

    residual: Array | None
    mlp_inner: Array | None


def run_layers(
    body: Body, x: Array, stack: Any, count: int, look: Look, remat: Callable[[Body], Body]
) -> tuple[Array, Inside]:
    """All layers in turn, in scans that end where one is looked into or pushed.

    Args:
      body: one layer.
      x: what goes into the first, `[B, L, D]`.
      stack: pytree whose leaves hold the layers on axis 0.
      count: of the layers.
      look: see `Look`.
      remat: says what of the body the backward pass computes again.
    Returns:
      What the last layer gives, and what was asked for. Nobody pays for what nobody reads.
    Raises:
      UserError: no such layer.
    """

    def scan(x: Array, start: int, stop: int, *, looking: bool = False) -> tuple[Array, Any]:
        def one(x: Array, layer: Any) -> tuple[Array, Array | None]:
            x, inner = body(x, layer)
            return x, inner if looking else None

        whole = stop - start == count
        part = stack if whole else jax.tree.map(lambda leaf: leaf[start:stop], stack)
        return (x, None) if start == stop else jax.lax.scan(remat(one), x, part)

    wanted = look.residual, look.mlp_inner, None if look.push is None else look.push.layer
    out, into, pushed = (None if each is None else layer_index(each, count) for each in wanted)
    states = inner = None
    done = 0
    for layer in sorted({each for each in (out, into, pushed) if each is not None}):
        if layer == into:
            x, _ = scan(x, done, layer)
            x, (inner,) = scan(x, layer, layer + 1, looking=True)
        else:
            x, _ = scan(x, done, layer + 1)
        if layer == pushed and look.push is not None:
            x = _pushed(x, look.push)
        states, done = (x if layer == out else states), layer + 1
    x, _ = scan(x, done, count)
    return x, Inside(states, inner)


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
