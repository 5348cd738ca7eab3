"""Averages and merges of models along a stream: what is evaluated is not what is trained."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.terms import number
from jaxforget.engine.errors import UserError
from jaxforget.strategies.guard import Guard, Tree, copied, moved, zeros


class AverageState(NamedTuple):
    """What `ema` and `task_average` carry.

    Attributes:
      average: float32, like the parameters.
      count: tasks in it, int32; not used by `ema`.
    """

    average: Tree
    count: Array


def ema(decay: float = 0.999) -> Guard:
    """Exponential moving average of the parameters after every step, from their start.

    Args:
      decay: m in [0, 1): phi <- m phi + (1 - m) theta; 0 is the model itself.
    Returns:
      A `Guard` whose evaluated parameters are the average. State: `AverageState`.
    Raises:
      UserError: a decay out of range.
    """
    if number("ema", "decay", decay, 0.0, 1.0) == 1:
        raise UserError("ema: decay must be below 1")

    def init(params: Tree) -> AverageState:
        return AverageState(copied(params), jnp.zeros((), jnp.int32))

    def observe(g: Tree, update: Tree, state: AverageState, params: Tree) -> AverageState:
        after = moved(params, update)
        if not decay:
            return state._replace(average=copied(after))
        average = jax.tree.map(
            lambda phi, p: phi + (1 - decay) * (p.astype(jnp.float32) - phi), state.average, after
        )
        return state._replace(average=average)

    return Guard(init=init, observe=observe, evaluated=_average)


def task_average() -> Guard:
    """The mean of the models at the ends of the tasks.

    Returns:
      A `Guard` whose evaluated parameters, once a task has ended, are that mean. State:
      `AverageState`.
    """

    def init(params: Tree) -> AverageState:
        return AverageState(copied(params), jnp.zeros((), jnp.int32))

    def end_of_task(state: AverageState, params: Tree, measured: None) -> AverageState:
        count = state.count + 1
        average = jax.tree.map(
            lambda phi, p: phi + (p.astype(jnp.float32) - phi) / count, state.average, params
        )
        return AverageState(average, count)

    def evaluated(state: AverageState, params: Tree) -> Tree:
        mean = _average(state, params)
        return jax.tree.map(lambda m, p: jnp.where(state.count > 0, m, p), mean, params)

    return Guard(init=init, end_of_task=end_of_task, evaluated=evaluated)


def _average(state: AverageState, params: Tree) -> Tree:
    return jax.tree.map(lambda phi, p: phi.astype(p.dtype), state.average, params)


class StartState(NamedTuple):
    """What `wise_ft` carries: parameters to come back to."""

    start: Tree


def wise_ft(share: float = 0.5, *, anchor: Literal["start", "previous"] = "start") -> Guard:
    """WiSE-FT: (1 - share) theta_start + share theta.

    Args:
      share: 0 gives the anchor, 1 the trained model, both bit for bit; in [0, 1].
      anchor: the model before the first task, or before the task that is trained.
    Returns:
      A `Guard` whose evaluated parameters are the mixture. State: `StartState`.
    Raises:
      UserError: a share or an anchor that is not allowed.
    Source: Wortsman et al. 2022 (arXiv 2109.01903).
    """
    number("wise_ft", "share", share, 0.0, 1.0)
    if anchor not in ("start", "previous"):
        raise UserError(f"wise_ft: anchor must be 'start' or 'previous', got {anchor!r}")

    def end_of_task(state: StartState, params: Tree, measured: None) -> StartState:
        return StartState(_same(params))

    return Guard(
        init=lambda params: StartState(_same(params)),
        end_of_task=end_of_task if anchor == "previous" else None,
        evaluated=lambda state, params: _mixed(state.start, params, share),
    )


def _mixed(start: Tree, params: Tree, share: float) -> Tree:
    if share in (0, 1):
        return params if share else start

    def mix(a: Array, b: Array) -> Array:
        wide = a.astype(jnp.float32)
        return (wide + share * (b.astype(jnp.float32) - wide)).astype(a.dtype)

    return jax.tree.map(mix, start, params)


class MergeState(NamedTuple):
    """What `max_merge` carries.

    Attributes:
      start: parameters before the first task.
      largest: of each entry, the change of a task with the largest magnitude so far, float32.
      count: tasks in it, int32.
    """

    start: Tree
    largest: Tree
    count: Array


def max_merge(scale: float = 1.0) -> Guard:
    """Start plus, entry by entry, the task vector of largest magnitude (MagMax).

    A task vector is what training has changed since the start of the stream when a task ends.

    Args:
      scale: of the merged task vector, >= 0.
    Returns:
      A `Guard` whose evaluated parameters, once a task has ended, are the merged ones. State:
      `MergeState`.
    Raises:
      UserError: a scale that is not allowed.
    Source: Marczak et al. 2024 (arXiv 2407.06322).
    """
    number("max_merge", "scale", scale)

    def init(params: Tree) -> MergeState:
        return MergeState(_same(params), zeros(params), jnp.zeros((), jnp.int32))

    def end_of_task(state: MergeState, params: Tree, measured: None) -> MergeState:
        def larger(old: Array, p: Array, start: Array) -> Array:
            vector = p.astype(jnp.float32) - start.astype(jnp.float32)
            return jnp.where(jnp.abs(vector) > jnp.abs(old), vector, old)

        largest = jax.tree.map(larger, state.largest, params, state.start)
        return MergeState(state.start, largest, state.count + 1)

    def evaluated(state: MergeState, params: Tree) -> Tree:
        def leaf(start: Array, v: Array, p: Array) -> Array:
            merged = (start.astype(jnp.float32) + scale * v).astype(p.dtype)
            return jnp.where(state.count > 0, merged, p)

        return jax.tree.map(leaf, state.start, state.largest, params)

    return Guard(init=init, end_of_task=end_of_task, evaluated=evaluated)


def snapshot() -> Guard:
    """The parameters at the end of the previous task, as a teacher for distillation.

    Returns:
      A `Guard` that changes nothing; `previous` gives the copy, of the start in the first task.
    """

    def end_of_task(state: Any, params: Tree, measured: None) -> StartState:
        return StartState(_same(params))

    return Guard(
        init=lambda params: StartState(_same(params)),
        end_of_task=end_of_task,
        previous=lambda state: state.start,
    )


def _same(params: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
