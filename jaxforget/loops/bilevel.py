"""OFMU: forget by an inner ascent, retain by an outer descent with a penalty on stationarity.

Inner: maximise Phi = L_f - beta Sim(g_f, g_r), L the mean NLL of a role and g its gradient. Outer:
one step on L_r + rho ||grad Phi||^2. One cycle is `inner_steps` inner steps and one outer step,
each on the next batch. The gradients are in `phi`.

Source: Asif and Amiri 2025 (arXiv 2509.22483). The paper leaves open where the outer step starts;
see `OfmuSettings.reading`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.step import SUM, Step, guarded_update, with_totals
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import (
    Batches,
    Combiner,
    Loop,
    Metrics,
    Objective,
    Reference,
    ScoreFn,
    State,
)
from jaxforget.loops.phi import TINY, Losses, OfmuSettings, Phi, outer_gradient, phi_gradient

DEFAULTS = OfmuSettings()


class OfmuState(NamedTuple):
    """What OFMU carries besides the engine's state.

    Attributes:
      phase: int32 scalar, inner steps taken in this cycle.
      rho: float32 scalar.
      inner_opt: optimizer state of the inner steps; the outer ones use the engine's.
      anchor: parameters at the start of the cycle; () in reading A.
      forgotten: float32 scalar, running mean of L_f over outer steps; `most`: its largest value.
    """

    phase: Array
    rho: Array
    inner_opt: Any
    anchor: Any
    forgotten: Array
    most: Array


def ofmu(settings: OfmuSettings = DEFAULTS) -> Loop:
    """The loop; its objective must have the terms `forget` (mean log p) and `retain`.

    Args:
      settings: see `OfmuSettings`. inner_steps = 0 and rho = 0 are fine-tuning on the retain set;
        beta = rho = 0 alternates gradient ascent and retain steps.
    Returns:
      A `Loop`. Metrics: the terms, `similarity`, `stationarity` (norm of grad Phi), `rho`, `outer`
      (1 in outer steps), `alert_forgetting_reverses` (1 where the forget loss has fallen by a
      tenth from its best).
    Raises:
      UserError: from `make`, gradient accumulation, which the similarity of gradients forbids.
    """

    def init(params: Params, optimizer: optax.GradientTransformation) -> OfmuState:
        zero = jnp.zeros((), jnp.float32)
        keeps = settings.reading != "A"
        return OfmuState(
            phase=jnp.zeros((), jnp.int32),
            rho=jnp.float32(settings.rho),
            inner_opt=optimizer.init(params),
            anchor=jax.tree.map(jnp.copy, params) if keeps else (),
            forgotten=zero,
            most=zero,
        )

    def make(
        score: ScoreFn,
        objective: Objective,
        combiner: Combiner,
        optimizer: optax.GradientTransformation,
        *,
        accumulate: int = 1,
    ) -> Step:
        if accumulate != 1:
            raise UserError(
                "ofmu: train.accumulate must be 1; the similarity of two gradients is no mean "
                "over micro-batches"
            )
        return _step(settings, score, objective, combiner, optimizer)

    return Loop(make=make, init=init, second_order=settings.second_order)


def _step(
    settings: OfmuSettings,
    score: ScoreFn,
    objective: Objective,
    combiner: Combiner,
    optimizer: optax.GradientTransformation,
) -> Step:
    def step(
        state: State, frozen: Params, batches: Batches, reference: Reference
    ) -> tuple[State, Metrics]:
        losses = _losses(score, objective, frozen, with_totals(batches), reference)
        state = _begin_cycle(state, settings)
        inner = state.loop_state.phase < settings.inner_steps
        state, metrics = jax.lax.cond(
            inner,
            lambda s: _inner(s, losses, settings, combiner, optimizer),
            lambda s: _outer(s, losses, settings, combiner, optimizer),
            state,
        )
        return _same_schedule(state), metrics

    return step


def _losses(
    score: ScoreFn, objective: Objective, frozen: Params, batches: Batches, reference: Reference
) -> Losses:
    def term(name: str, sign: float) -> Callable[[Params], Array]:
        def loss(trained: Params) -> Array:
            def score_trained(leaves: Params, batch: Any, **options: Any):
                return score(merge(frozen, leaves), batch, **options)

            terms, _ = objective(score_trained, trained, batches, reference)
            return sign * terms[name]

        return loss

    return Losses(term("forget", -1.0), term("retain", 1.0))


def _begin_cycle(state: State, settings: OfmuSettings) -> State:
    """Remember where a cycle starts, in the readings that return there."""
    loop: OfmuState = state.loop_state
    if settings.reading == "A":
        return state
    first = loop.phase == 0
    anchor = jax.tree.map(lambda p, a: jnp.where(first, p, a), state.params, loop.anchor)
    return replace(state, loop_state=loop._replace(anchor=anchor))


def _inner(
    state: State,
    losses: Losses,
    settings: OfmuSettings,
    combiner: Combiner,
    optimizer: optax.GradientTransformation,
) -> tuple[State, Metrics]:
    loop: OfmuState = state.loop_state
    ascent, found = phi_gradient(losses, state.params, settings)
    direction = _scaled(jax.tree.map(jnp.negative, ascent), settings)
    loss = found.retain - found.forget
    apart = replace(state, opt_state=loop.inner_opt)
    new, more = guarded_update(apart, {SUM: direction}, loss, combiner, optimizer)
    loop = loop._replace(phase=loop.phase + 1, inner_opt=new.opt_state)
    new = replace(new, opt_state=state.opt_state, loop_state=loop)
    return new, _metrics(found, more, loop, ascent, outer=0.0)


def _outer(
    state: State,
    losses: Losses,
    settings: OfmuSettings,
    combiner: Combiner,
    optimizer: optax.GradientTransformation,
) -> tuple[State, Metrics]:
    loop: OfmuState = state.loop_state
    start = state.params if settings.reading == "A" else loop.anchor
    where = loop.anchor if settings.reading == "B" else state.params
    direction, ascent, found = outer_gradient(losses, where, loop.rho, settings)
    loss = found.retain - found.forget
    new, more = guarded_update(
        replace(state, params=start), {SUM: _scaled(direction, settings)}, loss, combiner, optimizer
    )
    loss_f = -found.forget
    seen = loop.most > 0
    forgotten = jnp.where(seen, 0.5 * (loop.forgotten + loss_f), loss_f)
    loop = loop._replace(
        phase=jnp.zeros_like(loop.phase),
        rho=loop.rho * settings.growth,
        forgotten=forgotten,
        most=jnp.maximum(loop.most, forgotten),
    )
    return replace(new, loop_state=loop), _metrics(found, more, loop, ascent, outer=1.0)


def _scaled(direction: Params, settings: OfmuSettings) -> Params:
    if not settings.normalise:
        return direction
    size = optax.tree.norm(direction) + TINY
    return jax.tree.map(lambda leaf: leaf / size, direction)


def _metrics(
    found: Phi, more: Metrics, loop: OfmuState, ascent: Params, *, outer: float
) -> Metrics:
    return {
        **more,
        "forget": found.forget,
        "retain": found.retain,
        "loss": found.retain,
        "similarity": found.similarity,
        "stationarity": optax.tree.norm(ascent),
        "rho": loop.rho,
        "outer": jnp.float32(outer),
        "alert_forgetting_reverses": (loop.forgotten < 0.9 * loop.most).astype(jnp.float32),
    }


def _same_schedule(state: State) -> State:
    """Both optimizer states follow the learning-rate schedule of the run's own step."""

    def advance(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=state.step)
        return node

    def advanced(tree: Any) -> Any:
        return jax.tree.map(
            advance, tree, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState)
        )

    loop = state.loop_state._replace(inner_opt=advanced(state.loop_state.inner_opt))
    return replace(state, opt_state=advanced(state.opt_state), loop_state=loop)
