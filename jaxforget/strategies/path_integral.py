"""Synaptic intelligence: what each parameter did for the loss along the way of training."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.terms import number
from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Metrics
from jaxforget.strategies.guard import Guard, Tree, added, copied, total, zeros


class PathState(NamedTuple):
    """What `si` carries; trees like the parameters.

    Attributes:
      path: omega, minus the sum of gradient x step since the task began: the loss it took off.
      importance: Omega, >= 0; zeros before the first task ends.
      anchor: parameters at the end of the last task, float32.
      steps: of this task, int32.
    """

    path: Tree
    importance: Tree
    anchor: Tree
    steps: Array


def si(
    weight: float,
    *,
    damping: float = 1e-3,
    storage: Literal["compact", "exact"] = "compact",
) -> Guard:
    """Synaptic intelligence: weight sum_i Omega_i (theta_i - theta*_i)^2.

    Every step omega_i -= g_i (theta_i' - theta_i), with the gradient g of the task's loss alone and
    the step as it is applied; at the end of a task
    Omega_i += max(0, omega_i) / ((theta_i - theta*_i)^2 + damping), omega = 0, theta* = theta.

    Args:
      weight: c >= 0; 0 changes nothing.
      damping: xi > 0.
      storage: "exact": omega and Omega are float32, three copies of float32 parameters in all;
        "compact": both bfloat16, two copies. omega is then rounded up or down at random (by place
        and step, so that runs repeat bit for bit), which leaves its expectation exact and an error
        of about 6 % of a single entry; sums over many entries are as good as exact.
    Returns:
      A `Guard` that measures nothing between tasks. State: `PathState`. Metrics `si_penalty` and
      `si_path`, the sum of omega.
    Raises:
      UserError: a value out of range.
    Source: Zenke et al. 2017 (arXiv 1703.04200), eq. 3-5.
    """
    factor = number("si", "weight", weight)
    if number("si", "damping", damping) == 0:
        raise UserError("si: damping must be above 0")
    if storage not in ("compact", "exact"):
        raise UserError(f"si: storage must be 'compact' or 'exact', got {storage!r}")
    dtype = jnp.bfloat16 if storage == "compact" else jnp.float32

    def init(params: Tree) -> PathState:
        none = zeros(params, dtype)
        return PathState(none, zeros(params, dtype), copied(params), jnp.zeros((), jnp.int32))

    def gradient(g: Tree, state: PathState, params: Tree) -> tuple[Tree, Metrics]:
        gap = jax.tree.map(lambda p, a: p.astype(jnp.float32) - a, params, state.anchor)
        pull = jax.tree.map(lambda w, d: w.astype(jnp.float32) * d, state.importance, gap)
        value = total(jax.tree.map(lambda w, d: w * d, pull, gap))
        metrics = {"si_penalty": factor * value, "si_path": _sum(state.path)}
        more = jax.tree.map(lambda x: (2 * factor) * x, pull)
        return (added(g, more) if factor else g), metrics

    def observe(g: Tree, update: Tree, state: PathState, params: Tree) -> PathState:
        def grown(path: Array, one: Array, step: Array, before: Array) -> Array:
            # the step as it is applied: rounded into the parameter's dtype
            after = (before + step).astype(before.dtype)
            taken = after.astype(jnp.float32) - before.astype(jnp.float32)
            wide = path.astype(jnp.float32) - one.astype(jnp.float32) * taken
            return rounded_at_random(wide, state.steps) if storage == "compact" else wide

        path = jax.tree.map(grown, state.path, g, update, params)
        return state._replace(path=path, steps=state.steps + 1)

    def end_of_task(state: PathState, params: Tree, measured: None) -> PathState:
        def more(old: Array, path: Array, p: Array, anchor: Array) -> Array:
            gained = jnp.maximum(path.astype(jnp.float32), 0.0)
            gap = jnp.square(p.astype(jnp.float32) - anchor) + damping
            return (old.astype(jnp.float32) + gained / gap).astype(dtype)

        importance = jax.tree.map(more, state.importance, state.path, params, state.anchor)
        nothing = zeros(state.path, dtype)
        return PathState(nothing, importance, copied(params), jnp.zeros((), jnp.int32))

    return Guard(init=init, gradient=gradient, observe=observe, end_of_task=end_of_task)


def _sum(tree: Tree) -> Array:
    return total(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree))


def rounded_at_random(x: Array, step: Array) -> Array:
    """float32 -> one of the two nearest bfloat16, the nearer the likelier; exact in expectation.

    The numbers drawn are a hash of the place in the array and the step: the same under any
    sharding, and a few integer operations an entry.

    Args:
      x: float32, any shape.
      step: int32 scalar.
    Returns:
      bfloat16, the shape of x; finite values stay finite below the largest bfloat16.
    """
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    drawn = _mixed(place + _mixed(step.astype(jnp.uint32)))
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (drawn & jnp.uint32(0xFFFF))
    kept = (bits >> 16).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(kept, jnp.bfloat16)


def _mixed(x: Array) -> Array:
    """A hash of 32 bits in which every bit of the input reaches every bit of the output."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
