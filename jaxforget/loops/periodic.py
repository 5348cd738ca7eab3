"""Learn one set, and every few steps climb the loss of another."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxforget.engine.errors import UserError
from jaxforget.engine.step import Step
from jaxforget.engine.tree import Params
from jaxforget.engine.types import (
    Batches,
    Combiner,
    Loop,
    Metrics,
    Objective,
    Reference,
    ScoreFn,
    State,
    Terms,
)
from jaxforget.loops.plain import plain

LEARN, FORGET = "retain", "forget"


def periodic_until(every: int, until: float) -> Callable[[int], Loop]:
    """`periodic` whose forgetting steps stand in the first part of the run alone.

    Args:
      every: see `periodic`.
      until: share of the run's steps in which they may stand, in [0, 1].
    Returns:
      Steps of the run -> the loop.
    Raises:
      UserError: `until` outside [0, 1]; as `periodic`.
    """
    if not 0 <= until <= 1:
        raise UserError(f"periodic: until must be in [0, 1], got {until}")
    periodic(every)
    return lambda steps: periodic(every, last=round(until * steps))


def periodic(every: int, *, last: int | None = None) -> Loop:
    """Steps on the term `retain`, each `every` of them followed by one on the term `forget`.

    Both kinds share the optimizer and its moments. A run of at most `every` steps is plain
    training on `retain`, bit for bit.

    Args:
      every: N_u, learning steps between two forgetting steps, >= 1.
      last: step from which on all are learning steps; None: none.
    Returns:
      A `Loop` without state; metrics are those of the step's own term (the other's is 0), and
      `forgetting`, 1 in forgetting steps. The combiner must be a weighted sum of the two terms.
    Raises:
      UserError: `every` below 1; from `make`, another combiner.
    Source: LWF (arXiv 2505.19715), algorithm 1, step 4.
    """
    if every < 1:
        raise UserError(f"periodic: every must be at least 1, got {every}")

    def make(
        score: ScoreFn,
        objective: Objective,
        combiner: Combiner,
        optimizer: optax.GradientTransformation,
        *,
        accumulate: int = 1,
    ) -> Step:
        weights = combiner.weights
        if weights is None or set(weights) != {LEARN, FORGET}:
            raise UserError("periodic: needs a weighted sum of the terms forget and retain")

        def side(name: str) -> Step:
            alone = replace(combiner, weights={name: weights[name]})
            return plain(score, _only(objective, name), alone, optimizer, accumulate=accumulate)

        learn, forget = side(LEARN), side(FORGET)

        def step(
            state: State, frozen: Params, batches: Batches, reference: Reference
        ) -> tuple[State, Metrics]:
            forgetting = state.step % (every + 1) == every
            if last is not None:
                forgetting &= state.step < last

            def run(inner: Step, silent: str) -> Any:
                def branch(state: State) -> tuple[State, Metrics]:
                    new, metrics = inner(state, frozen, batches, reference)
                    return new, {**metrics, silent: jnp.zeros(())}

                return branch

            state, metrics = jax.lax.cond(forgetting, run(forget, LEARN), run(learn, FORGET), state)
            return state, {**metrics, "forgetting": forgetting.astype(jnp.float32)}

        return step

    return Loop(make=make, init=lambda params, optimizer: ())


def _only(objective: Objective, name: str) -> Objective:
    """One term of an objective; what only the others need is never computed."""

    def one(
        score: ScoreFn, params: Params, batches: Batches, reference: Reference
    ) -> tuple[Terms, Metrics]:
        terms, _ = objective(score, params, batches, reference)
        return {name: terms[name]}, {}

    return one
