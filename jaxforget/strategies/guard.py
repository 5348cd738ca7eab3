"""What is done to gradients and updates so that a model keeps what it learned before.

A `Guard` is a handful of pure functions around a state of fixed shape. `as_transform` makes it an
optax transformation, so that any loop can use it and its state is saved with the optimizer's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxforget.edits.material import Material
from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Metrics

type Tree = Any
"""Any pytree of float arrays: nested dictionaries, or the state of a Flax module."""


def _stateless(params: Tree) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Guard:
    """How parameters are held. Every function is pure; what is None is not done.

    Attributes:
      init: params -> state, a pytree whose shapes never change.
      gradient: (gradient of the task's loss, state, params) -> (gradient, metrics), before the
        optimizer: the gradient of a penalty added, or a projection.
      update: (update made by the optimizer, state, params) -> (update, metrics), for what must
        survive momentum, decay and clipping: masks and projections.
      observe: (gradient of the task's loss, update as it is applied, state, params before it) ->
        state; the only function that changes the state within a task.
      prepare: (state, params, frozen leaves or {}) -> state, on the host, once before the first
        step.
      measure: what `end_of_task` needs of the data of the task that ended, from `Material` with
        the role "train"; for loops of one's own see `jaxforget.strategies.importances`.
      end_of_task: (state, params, measured or None) -> state.
      evaluated: (state, params) -> the parameters to evaluate and to save, where they are not
        those that are trained.
      previous: state -> parameters at the end of the previous task, where the state holds them.
    """

    init: Callable[[Tree], Any] = _stateless
    gradient: Callable[[Tree, Any, Tree], tuple[Tree, Metrics]] | None = None
    update: Callable[[Tree, Any, Tree], tuple[Tree, Metrics]] | None = None
    observe: Callable[[Tree, Tree, Any, Tree], Any] | None = None
    prepare: Callable[[Any, Tree, Tree], Any] | None = None
    measure: Callable[[Material], Any] | None = None
    end_of_task: Callable[[Any, Tree, Any], Any] | None = None
    evaluated: Callable[[Any, Tree], Tree] | None = None
    previous: Callable[[Any], Tree] | None = None


NOTHING = Guard()
"""The guard of plain training."""


class GuardedState(NamedTuple):
    """State of a guarded optimizer.

    Attributes:
      guard: of the guard.
      optimizer: of the optimizer.
      metrics: scalars of the last step, float32.
    """

    guard: Any
    optimizer: Any
    metrics: Metrics


def as_transform(
    guard: Guard, optimizer: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that guards what was learned before.

    Use it wherever optax is used: `init`, `update`, `optax.apply_updates`; call `end_task` between
    tasks. `guard.gradient` sees the gradient before whatever the optimizer does to it, clipping
    included.

    Args:
      guard: see `Guard`.
      optimizer: any optax transformation.
    Returns:
      A transformation whose state is `GuardedState`; its `update` needs `params`.
    """
    inner = optax.with_extra_args_support(optimizer)

    def step(
        gradient: Tree, state: tuple[Any, Any], params: Tree, extra: dict[str, Any]
    ) -> tuple[Tree, GuardedState]:
        own, carried = state
        direction, update, metrics = gradient, gradient, {}
        if guard.gradient is not None:
            direction, metrics = guard.gradient(gradient, own, params)
        update, carried = inner.update(direction, carried, params, **extra)
        if guard.update is not None:
            update, more = guard.update(update, own, params)
            metrics = {**metrics, **more}
        if guard.observe is not None:
            own = guard.observe(gradient, update, own, params)
        return update, GuardedState(own, carried, metrics)

    def init(params: Tree) -> GuardedState:
        state = guard.init(params), inner.init(params)
        shapes = jax.eval_shape(lambda p, s: step(p, s, p, {})[1].metrics, params, state)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return GuardedState(*state, zeros)

    def update(
        updates: Tree, state: GuardedState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, GuardedState]:
        if params is None:
            raise ValueError("a guarded optimizer's update needs the parameters")
        return step(updates, (state.guard, state.optimizer), params, extra)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def end_task(guard: Guard, state: GuardedState, params: Tree, measured: Any = None) -> GuardedState:
    """The state with which the next task begins.

    Args:
      guard: see `Guard`.
      state: after the last step of a task.
      params: after the last step of a task.
      measured: what `guard.measure` gives, or what its factory says.
    Raises:
      UserError: the guard measures the task's data and was given nothing.
    """
    if guard.end_of_task is None:
        return state
    if guard.measure is not None and measured is None:
        raise UserError("end_task: this guard needs what it measures on the data of the old task")
    return state._replace(guard=guard.end_of_task(state.guard, params, measured))


def chain(*guards: Guard) -> Guard:
    """Several guards at once.

    Gradients and updates pass through them in order, so what must hold of the update that is
    applied comes last. All observe the same: the gradient as it came and the update at the end.
    What `measure` gives is a tuple with one entry a guard.

    Args:
      guards: any number; one alone is returned as it is.
    Raises:
      UserError: two of them would replace the parameters that are evaluated.
    """
    if len(guards) == 1:
        return guards[0]
    if sum(each.evaluated is not None for each in guards) > 1:
        raise UserError("chain: two guards replace the parameters that are evaluated; keep one")
    return Guard(
        init=lambda params: tuple(each.init(params) for each in guards),
        gradient=_in_turn([each.gradient for each in guards]),
        update=_in_turn([each.update for each in guards]),
        observe=_each([each.observe for each in guards], place=2),
        prepare=_each([each.prepare for each in guards], place=0),
        measure=_measured(guards),
        end_of_task=_ended(guards),
        evaluated=_first([each.evaluated for each in guards]),
        previous=_first([each.previous for each in guards]),
    )


type _Change = Callable[[Tree, Any, Tree], tuple[Tree, Metrics]]


def _in_turn(changes: list[_Change | None]) -> _Change | None:
    if not any(changes):
        return None

    def apply(tree: Tree, state: Any, params: Tree) -> tuple[Tree, Metrics]:
        metrics: Metrics = {}
        for change, own in zip(changes, state, strict=True):
            if change is not None:
                tree, more = change(tree, own, params)
                metrics = {**metrics, **more}
        return tree, metrics

    return apply


def _each(functions: list[Any], place: int) -> Callable[..., Any] | None:
    """Functions that take their own state as argument number `place` and give the next one."""
    if not any(functions):
        return None

    def apply(*given: Any) -> Any:
        after = []
        for function, own in zip(functions, given[place], strict=True):
            mine = (*given[:place], own, *given[place + 1 :])
            after.append(own if function is None else function(*mine))
        return tuple(after)

    return apply


def _measured(guards: tuple[Guard, ...]) -> Callable[[Material], Any] | None:
    if not any(each.measure for each in guards):
        return None
    return lambda material: tuple(
        None if each.measure is None else each.measure(material) for each in guards
    )


def _ended(guards: tuple[Guard, ...]) -> Callable[[Any, Tree, Any], Any] | None:
    if not any(each.end_of_task for each in guards):
        return None

    def apply(state: Any, params: Tree, measured: Any) -> Any:
        found = (None,) * len(guards) if measured is None else measured
        return tuple(
            own if each.end_of_task is None else each.end_of_task(own, params, mine)
            for each, own, mine in zip(guards, state, found, strict=True)
        )

    return apply


def _first(functions: list[Any]) -> Callable[..., Any] | None:
    found = [(i, function) for i, function in enumerate(functions) if function is not None]
    if not found:
        return None
    index, function = found[0]
    return lambda state, *rest: function(state[index], *rest)


def evaluated(guard: Guard, state: GuardedState, params: Tree) -> Tree:
    """The parameters to evaluate: those trained, unless the guard averages or merges."""
    return params if guard.evaluated is None else guard.evaluated(state.guard, params)


def reset_optimizer(
    optimizer: optax.GradientTransformation, state: GuardedState, params: Tree
) -> GuardedState:
    """The state with moments and their counts as at the start; the schedule goes on.

    What `optimizer_reset: per_task` means: call it between tasks. The guard's state stays, and so
    do the counts that learning-rate schedules read (`optax.ScaleByScheduleState`).

    Args:
      optimizer: as given to `as_transform`.
      state: of that transformation.
      params: of the model.
    """

    def is_count(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    fresh = jax.tree.map(
        lambda new, old: old if is_count(new) else new,
        optimizer.init(params),
        state.optimizer,
        is_leaf=is_count,
    )
    return state._replace(optimizer=fresh)


def copied(tree: Tree, dtype: Any = jnp.float32) -> Tree:
    """The leaves in new buffers: a donated original never takes the copy with it."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype, copy=True), tree)


def zeros(tree: Tree, dtype: Any = jnp.float32) -> Tree:
    """Zeros in the shapes of a tree."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), tree)


def added(gradient: Tree, more: Tree) -> Tree:
    """gradient + more in the dtypes of the gradient."""
    return jax.tree.map(lambda g, m: g + m.astype(g.dtype), gradient, more)


def moved(params: Tree, update: Tree) -> Tree:
    """The parameters after an update, as the training step computes them."""
    return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, update)


def total(tree: Tree) -> Array:
    """Sum of all entries, float32 scalar."""
    return sum((leaf.sum() for leaf in jax.tree.leaves(tree)), jnp.zeros((), jnp.float32))
