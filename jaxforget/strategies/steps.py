"""Compiled steps of a strategy: one program a task, in the form every other loop has."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxforget.combiners import weighted_sum
from jaxforget.engine.step import SUM, Step, accumulated_gradients, guarded_update
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import (
    Batches,
    Combiner,
    Metrics,
    Reference,
    ReferenceScores,
    ScoreFn,
    Scores,
    State,
    TokenBatch,
)
from jaxforget.loops import plain
from jaxforget.objectives import ObjectiveSpec, Part, assemble
from jaxforget.strategies.guard import as_transform
from jaxforget.strategies.strategy import NLL, Rehearsal, Strategy


def make_step(
    strategy: Strategy,
    score: ScoreFn,
    optimizer: optax.GradientTransformation,
    *,
    task: int,
    accumulate: int = 1,
    phase: Literal["stream", "rehearsal"] = "stream",
) -> Step:
    """One optimizer step of a strategy in a task.

    The state is `init_state(params, strategy.transform(optimizer), weighted_sum({"nll": 1.0}))`
    and goes on from task to task.

    Args:
      strategy: see `Strategy`.
      score: model as a pure function of all its parameters.
      optimizer: not guarded.
      task: from 0; equal programs from task to task where `strategy.active` is equal.
      accumulate: micro-batches per step, >= 1; must divide the rows of every role.
      phase: "stream": the steps of a task, with rehearsal phases in between where the strategy has
        them every so many steps of `State.step`; "rehearsal": a step on stored examples alone.
    Returns:
      (state, frozen leaves, batches of `strategy.roles(task)`, reference) -> (state, metrics),
      see `jaxforget.loops.plain`; metrics also hold the guards', and `rehearsing`, 1 in steps of a
      rehearsal phase, where there are phases in between.
    """
    rehearsal = strategy.rehearsal
    if phase == "rehearsal":
        assert rehearsal is not None, f"{strategy.name} has no rehearsal phase"
        return _with_guard_metrics(_rehearsing(strategy, rehearsal, score, optimizer, accumulate))
    stream = _with_teacher(
        strategy, task, score, _stream(strategy, task, score, optimizer, accumulate)
    )
    if rehearsal is None or rehearsal.every is None:
        return _with_guard_metrics(stream)
    memory = _rehearsing(strategy, rehearsal, score, optimizer, accumulate)
    return _with_guard_metrics(_alternating(stream, memory, rehearsal.every, rehearsal.steps))


def _stream(
    strategy: Strategy,
    task: int,
    score: ScoreFn,
    optimizer: optax.GradientTransformation,
    accumulate: int,
) -> Step:
    transform = as_transform(strategy.guard, optimizer)
    weights, active = strategy.weights(task), strategy.active(task)
    summed: dict[str, Part] = {
        NLL: strategy.own,
        **{name: term.part for name, term in active.items() if term.weight is not None},
    }
    alone = {name: term.part for name, term in active.items() if term.weight is None}
    if not alone:
        spec = assemble(summed)
        return plain(score, spec.objective, weighted_sum(weights), transform, accumulate=accumulate)
    assert strategy.combiner is not None, "terms without weight need a combiner"
    groups = {SUM: (assemble(summed), weights)}
    groups |= {name: (assemble({name: part}), {name: 1.0}) for name, part in alone.items()}
    return _apart(score, groups, strategy.combiner(tuple(alone)), transform, accumulate)


def _apart(
    score: ScoreFn,
    groups: Mapping[str, tuple[ObjectiveSpec, Mapping[str, float]]],
    combiner: Combiner,
    transform: optax.GradientTransformation,
    accumulate: int,
) -> Step:
    """A step whose combiner sees one gradient a group, each from its own roles' rows alone."""

    def step(
        state: State, frozen: Params, batches: Batches, reference: Reference
    ) -> tuple[State, Metrics]:
        def score_trained(trained: Params, batch: TokenBatch, **options: Any) -> Scores:
            return score(merge(frozen, trained), batch, **options)

        gradients: dict[str, Params] = {}
        scalars: Metrics = {}
        loss: Array = jnp.zeros(())
        for name, (spec, weights) in groups.items():
            roles = spec.needs.roles
            found, terms, metrics = accumulated_gradients(
                spec.objective,
                weighted_sum(weights),
                score_trained,
                state.params,
                {role: batches[role] for role in roles},
                {role: reference[role] for role in roles if role in reference},
                accumulate,
            )
            gradients[name] = found[SUM]
            scalars |= {**metrics, **terms}
            if name == SUM:
                loss = sum((weights[term] * value for term, value in terms.items()), loss)
        state, more = guarded_update(state, gradients, loss, combiner, transform)
        return state, {**scalars, **more, "loss": loss}

    return step


def _rehearsing(
    strategy: Strategy,
    rehearsal: Rehearsal,
    score: ScoreFn,
    optimizer: optax.GradientTransformation,
    accumulate: int,
) -> Step:
    weights = {name: term.weight or 0.0 for name, term in rehearsal.terms.items()}
    spec = assemble({name: term.part for name, term in rehearsal.terms.items()})
    transform = as_transform(strategy.rehearsal_guard, optimizer)
    return plain(score, spec.objective, weighted_sum(weights), transform, accumulate=accumulate)


def _alternating(stream: Step, memory: Step, every: int, count: int) -> Step:
    """`every` steps on the stream, then `count` on the memory, and so on."""

    def step(
        state: State, frozen: Params, batches: Batches, reference: Reference
    ) -> tuple[State, Metrics]:
        rehearsing = state.step % (every + count) >= every
        shapes = [
            jax.eval_shape(one, state, frozen, batches, reference)[1] for one in (memory, stream)
        ]
        every_name = {name: leaf for found in shapes for name, leaf in found.items()}

        def run(one: Step) -> Any:
            def branch(state: State) -> tuple[State, Metrics]:
                new, metrics = one(state, frozen, batches, reference)
                silent = {n: jnp.zeros(leaf.shape, leaf.dtype) for n, leaf in every_name.items()}
                return new, {**silent, **metrics}

            return branch

        state, metrics = jax.lax.cond(rehearsing, run(memory), run(stream), state)
        return state, {**metrics, "rehearsing": rehearsing.astype(jnp.float32)}

    return step


def _with_teacher(strategy: Strategy, task: int, score: ScoreFn, step: Step) -> Step:
    """The scores of a live teacher put among the references."""
    roles = [role for role, (source, _) in strategy.references(task).items() if source == "live"]
    if not roles:
        return step
    previous = strategy.guard.previous
    assert previous is not None, "a live teacher needs a snapshot"

    def taught(
        state: State, frozen: Params, batches: Batches, reference: Reference
    ) -> tuple[State, Metrics]:
        teacher = merge(frozen, previous(state.opt_state.guard))
        live = {}
        for role in roles:
            found = jax.lax.stop_gradient(score(teacher, batches[role]))
            live[role] = ReferenceScores(found.logp, found.hidden, found.head)
        return step(state, frozen, batches, {**reference, **live})

    return taught


def _with_guard_metrics(step: Step) -> Step:
    def told(
        state: State, frozen: Params, batches: Batches, reference: Reference
    ) -> tuple[State, Metrics]:
        state, metrics = step(state, frozen, batches, reference)
        return state, {**metrics, **state.opt_state.metrics}

    return told
