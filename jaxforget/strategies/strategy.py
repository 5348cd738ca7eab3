"""A strategy ready to train: extra terms, guards, and what its data must be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import optax

from jaxforget.edits.material import Material
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Combiner, State
from jaxforget.objectives import ObjectiveSpec, Part, assemble
from jaxforget.objectives.retain import nll_part
from jaxforget.strategies.guard import (
    Guard,
    GuardedState,
    as_transform,
    chain,
    end_task,
    evaluated,
    reset_optimizer,
)
from jaxforget.strategies.quadratic import TRAIN

NLL = "nll"
"""The term of the task being trained: mean negative log-likelihood on the role "train"."""

OWN = nll_part(TRAIN)
"""Its part where nothing else is asked for: all tokens of a step weigh alike."""

REPLAY, AGAIN = "replay", "replay_again"
"""Roles of stored examples: a draw from the buffer, and a second, independent one."""

type Source = Literal["previous", "live", "stored"]
"""Whose answers a term compares with: the model at the end of the previous task, its scores of the
new task's examples cached before the task; the same model kept in the state and asked in every
step; or the model that stored the example in the buffer, when it did."""


@dataclass(frozen=True)
class Term:
    """A term beside the loss of the task being trained.

    Attributes:
      part: see `Part`.
      weight: > 0 in the sum; None: its gradient is for the combiner alone.
      since: first task (from 0) in which it is there: 1 for what needs an earlier task.
      source: of its reference; None where it compares with nothing.
    """

    part: Part
    weight: float | None
    since: int = 1
    source: Source | None = None


@dataclass(frozen=True)
class Rehearsal:
    """Phases in which only stored examples are trained on, and only some modules move.

    Attributes:
      terms: of such a step, weights above 0.
      guard: masks its updates; observes stream steps as well.
      steps: K of one phase, >= 1.
      every: tau steps on the stream between two phases, counted over the whole stream; None: one
        phase, after the last task.
    """

    terms: Mapping[str, Term]
    guard: Guard
    steps: int
    every: int | None = None


@dataclass(frozen=True)
class Strategy:
    """How a model is trained on a stream of tasks so that it keeps the earlier ones.

    Attributes:
      name: as in the catalogue.
      terms: beside `NLL`, by name.
      guards: see `Guard`; in order.
      new_weight: of `NLL` where other terms weigh something, >= 0.
      combiner: names of the terms without weight -> what combines their gradients with that of the
        weighted sum, whose name is "sum"; None: there are none.
      data: "stream": each task alone, from the model before it; "cumulative": all tasks so far,
        from the model before; "joint": all tasks of the stream at once, from the start.
      rehearsal: see `Rehearsal`, or None.
      fresh_adapters: adapters are folded into the weights when a task ends, and the next one
        trains new factors.
      most_tasks: longest stream, or None.
      carry: the next task starts from the evaluated parameters.
      own: the loss of the task being trained, the term `NLL`.
    """

    name: str
    terms: Mapping[str, Term] = field(default_factory=dict)
    guards: tuple[Guard, ...] = ()
    new_weight: float = 1.0
    combiner: Callable[[tuple[str, ...]], Combiner] | None = None
    data: Literal["stream", "joint", "cumulative"] = "stream"
    rehearsal: Rehearsal | None = None
    fresh_adapters: bool = False
    most_tasks: int | None = None
    carry: bool = False
    own: Part = OWN

    @property
    def guard(self) -> Guard:
        """All guards as one, as steps on the stream use it."""
        return self._guard(masked=False)

    @property
    def rehearsal_guard(self) -> Guard:
        """The same, with the same state, as steps of a rehearsal phase use it."""
        return self._guard(masked=True)

    def _guard(self, masked: bool) -> Guard:
        guards = list(self.guards)
        if self.rehearsal is not None:
            own = self.rehearsal.guard
            guards.append(own if masked else replace(own, update=None))
        return chain(*guards)

    def active(self, task: int) -> dict[str, Term]:
        """The terms beside `NLL` in a task, counted from 0."""
        return {name: term for name, term in self.terms.items() if term.since <= task}

    def weights(self, task: int) -> dict[str, float]:
        """Of the terms of the sum, `NLL` included."""
        others = {n: t.weight for n, t in self.active(task).items() if t.weight is not None}
        return {NLL: self.new_weight if others else 1.0, **others}

    def spec(self, task: int) -> ObjectiveSpec:
        """Objective and needs of a task, terms without weight included."""
        return assemble({NLL: self.own, **{n: t.part for n, t in self.active(task).items()}})

    def roles(self, task: int) -> tuple[str, ...]:
        """Roles of the batches that every step of a task takes: "train", draws from the buffer
        ("replay", "replay_again"), and "memory_K", examples of task K alone."""
        roles = [*self.spec(task).needs.roles]
        if self.rehearsal is not None and self.rehearsal.every is not None:
            roles += [role for term in self.rehearsal.terms.values() for role in term.part.roles]
        return tuple(dict.fromkeys(roles))

    def references(self, task: int) -> dict[str, tuple[Source, frozenset[str]]]:
        """By role, whose scores a task compares with and which: "logp", "hidden" (with the head) or
        "top" (`ReferenceScores.words` and `.logits`). Those of a "live" teacher need no cache."""
        terms = [*self.active(task).values()]
        if self.rehearsal is not None:
            terms += self.rehearsal.terms.values()
        found: dict[str, tuple[Source, frozenset[str]]] = {}
        for term in terms:
            for role, fields in term.part.reference.items():
                assert term.source is not None, "a term with a reference says whose it is"
                source, others = found.get(role, (term.source, frozenset()))
                if source != term.source:
                    raise UserError(
                        f"{self.name}: {role!r} would be compared with two models, {source} and "
                        f"{term.source}; choose one"
                    )
                found[role] = (source, fields | others)
        return found

    def transform(self, optimizer: optax.GradientTransformation) -> Any:
        """The guarded optimizer of steps on the stream; see `as_transform`."""
        return as_transform(self.guard, optimizer)


def together(*strategies: Strategy) -> Strategy:
    """Several strategies at once, for example replay with EWC.

    Args:
      strategies: at least one. Their guards act in order, so masks and projections come last.
    Raises:
      UserError: the same strategy twice, terms of one name, two combiners, rehearsals, data modes
        or weights of the new task that differ.
    """
    names = [each.name for each in strategies]
    if not names or len(set(names)) < len(names):
        raise UserError(f"strategy: needs different strategies, at least one, got {names}")
    if len(strategies) == 1:
        return strategies[0]
    label, terms = " + ".join(names), {}
    for each in strategies:
        for name, term in each.terms.items():
            if name in terms:
                raise UserError(f"strategy: {label}: two of them have a term {name!r}")
            terms[name] = term
    return Strategy(
        label,
        terms,
        tuple(guard for each in strategies for guard in each.guards),
        _single(label, "new_weight", [each.new_weight for each in strategies], 1.0),
        _single(label, "combiner", [each.combiner for each in strategies], None),
        _single(label, "data", [each.data for each in strategies], "stream"),
        _single(label, "rehearsal", [each.rehearsal for each in strategies], None),
        any(each.fresh_adapters for each in strategies),
        min((each.most_tasks for each in strategies if each.most_tasks), default=None),
        any(each.carry for each in strategies),
    )


def _single(label: str, what: str, values: list[Any], default: Any) -> Any:
    """The one value that is not the default."""
    found = [value for value in values if value != default]
    if len(found) > 1:
        raise UserError(f"strategy: {label}: only one of them can bring its {what}")
    return found[0] if found else default


def check_stream(strategy: Strategy, tasks: int) -> None:
    """Refuse a stream that is longer than a strategy has room for.

    Raises:
      UserError: it is.
    """
    if strategy.most_tasks is not None and tasks > strategy.most_tasks:
        raise UserError(
            f"strategy: {strategy.name} has room for {strategy.most_tasks} tasks, the stream has "
            f"{tasks}"
        )


def prepared(strategy: Strategy, state: State, frozen: Params) -> State:
    """The state with what a strategy measures on the parameters before the first step.

    Args:
      strategy: see `Strategy`.
      state: whose `opt_state` is of `strategy.transform`.
      frozen: leaves that are not trained.
    """
    guard, carried = strategy.guard, _guarded(state)
    if guard.prepare is None:
        return state
    own = guard.prepare(carried.guard, state.params, frozen)
    # on the host until now: back to the devices of what it replaces
    own = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), own, carried.guard)
    return replace(state, opt_state=carried._replace(guard=own))


def next_task(
    strategy: Strategy,
    state: State,
    material: Material | None,
    *,
    optimizer: optax.GradientTransformation,
    optimizer_reset: Literal["never", "per_task"] = "never",
) -> State:
    """The state with which the next task begins, once the last step of a task is done.

    Where `strategy.fresh_adapters`, fold the adapters and put new factors into `State.params`
    after this.

    Args:
      strategy: see `Strategy`.
      state: after the last step.
      material: the task's data as the role "train", and the model; its `params` are not read.
        None where nothing is measured.
      optimizer: as given to `strategy.transform`.
      optimizer_reset: "per_task": moments start anew, schedules go on; see `reset_optimizer`.
    Raises:
      UserError: something is measured and there is no material.
    """
    guard, carried = strategy.guard, _guarded(state)
    params = evaluated(guard, carried, state.params) if strategy.carry else state.params
    measured = None
    if guard.measure is not None and material is not None:
        measured = guard.measure(replace(material, params=params))

    def end(carried: GuardedState, params: Params, measured: Any) -> GuardedState:
        after = end_task(guard, carried, params, measured)
        return reset_optimizer(optimizer, after, params) if optimizer_reset == "per_task" else after

    placed = jax.tree.map(lambda leaf: leaf.sharding, carried)
    carried = jax.jit(end, out_shardings=placed)(carried, params, measured)
    return replace(state, params=params, opt_state=carried)


def evaluated_params(strategy: Strategy, state: State) -> Params:
    """The trained leaves to evaluate and to save."""
    return evaluated(strategy.guard, _guarded(state), state.params)


def _guarded(state: State) -> GuardedState:
    assert isinstance(state.opt_state, GuardedState), "the optimizer is not guarded"
    return state.opt_state
