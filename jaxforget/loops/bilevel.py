"""OFMU: forget by an inner ascent, retain by an outer descent with a penalty on stationarity.

Inner: maximise Phi = L_f - beta Sim(g_f, g_r), L the mean NLL of a role and g its gradient. Outer:
one step on L_r + rho ||grad Phi||^2. One cycle is `inner_steps` inner steps and one outer step,
each on the next batch. Nothing of the size of a Hessian exists: products with it are forward over
reverse.

Source: Asif and Amiri 2025 (arXiv 2509.22483). The paper leaves open where the outer step starts;
see `OfmuSettings.reading`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

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

TINY = 1e-12  # both gradients vanish at a memorised start

type Gradient = Callable[[Params], Params]


@dataclass(frozen=True)
class OfmuSettings:
    """Of `ofmu`.

    Attributes:
      beta: weight of the similarity of forget and retain gradients, >= 0.
      rho: weight of the stationarity penalty at the first outer step, >= 0. Large values undo
        forgetting: the trained model is itself stationary.
      growth: factor of rho after every outer step, >= 1.
      inner_steps: T >= 0.
      reading: where the outer step starts and is computed: "A": both at the end of the inner
        loop; "B": both at its start; "C": computed at its end, taken from its start.
      similarity: "plain" prefers opposed gradients, "squared" and "absolute" orthogonal ones.
      outer: products with the Hessian of Phi "exact", forward over forward over reverse; or by
        "finite_difference" of gradients, for attention without a forward rule.
      finite_step: of the difference, relative to the parameters' norm.
      normalise: scale each direction to length 1 before the optimizer.
    """

    beta: float = 0.1
    rho: float = 0.0
    growth: float = 1.05
    inner_steps: int = 5
    reading: Literal["A", "B", "C"] = "A"
    similarity: Literal["plain", "squared", "absolute"] = "plain"
    outer: Literal["exact", "finite_difference"] = "exact"
    finite_step: float = 1e-3
    normalise: bool = False

    def __post_init__(self) -> None:
        bounds = {"beta": 0, "rho": 0, "growth": 1, "inner_steps": 0}
        for name, low in bounds.items():
            if not getattr(self, name) >= low:
                raise UserError(f"ofmu: {name} must be at least {low}, got {getattr(self, name)}")
        if not self.finite_step > 0:
            raise UserError(f"ofmu: finite_step must be above 0, got {self.finite_step}")


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


def ofmu(settings: OfmuSettings = OfmuSettings()) -> Loop:
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

    return Loop(make=make, init=init)


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


class Losses(NamedTuple):
    """L_f and L_r of one step's batches as functions of the trained leaves."""

    forget: Callable[[Params], Array]
    retain: Callable[[Params], Array]


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


def phi_gradient(
    losses: Losses, params: Params, beta: float, similarity: str = "plain"
) -> tuple[Params, Metrics]:
    """grad Phi, exactly: g_f - beta (H_f u + H_r w) with the tangents u, w of the similarity.

    Args:
      losses: L_f and L_r.
      params: where.
      beta: >= 0; 0 costs no Hessian product.
      similarity: see `OfmuSettings`.
    Returns:
      (gradient like `params`, {"forget", "retain", "similarity"}).
    """
    # linearised once: a gradient and, later, its product with a tangent for little more
    (loss_f, g_f), push_f = _linear(losses.forget, params)
    (loss_r, g_r), push_r = _linear(losses.retain, params)
    norm_f, norm_r = optax.tree.norm(g_f) + TINY, optax.tree.norm(g_r) + TINY
    cosine = optax.tree.vdot(g_f, g_r) / (norm_f * norm_r)
    metrics = {"forget": -loss_f, "retain": loss_r, "similarity": cosine}
    if beta == 0:
        return g_f, metrics
    u = jax.tree.map(lambda f, r: (r / norm_r - cosine * f / norm_f) / norm_f, g_f, g_r)
    w = jax.tree.map(lambda f, r: (f / norm_f - cosine * r / norm_r) / norm_r, g_f, g_r)
    slope = {"plain": 1.0, "squared": 2.0 * cosine, "absolute": jnp.sign(cosine)}[similarity]
    change = jax.tree.map(jnp.add, push_f(u), push_r(w))
    return jax.tree.map(lambda g, h: g - beta * slope * h, g_f, change), metrics


def _linear(loss: Callable[[Params], Array], params: Params) -> tuple[Any, Gradient]:
    """(value and gradient of a loss, its Hessian as a function of a tangent)."""
    both, push = jax.linearize(jax.value_and_grad(loss), params)
    return both, lambda tangent: push(tangent)[1]


def outer_gradient(
    losses: Losses, params: Params, rho: Array, settings: OfmuSettings
) -> tuple[Params, Metrics]:
    """grad (L_r + rho ||grad Phi||^2) = g_r + 2 rho H_Phi grad Phi.

    Args:
      losses: L_f and L_r.
      params: where.
      rho: float32 scalar.
      settings: see `OfmuSettings`; with rho 0 at the start the penalty is never computed.
    Returns:
      (gradient like `params`, metrics as in an inner step and "stationarity").
    """

    def grad_phi(at: Params) -> tuple[Params, Metrics]:
        return phi_gradient(losses, at, settings.beta, settings.similarity)

    direction, metrics = grad_phi(params)
    size = optax.tree.norm(direction)
    g_r = jax.grad(losses.retain)(params)
    metrics = {**metrics, "stationarity": size}
    if settings.rho == 0:
        return g_r, metrics
    if settings.outer == "exact":
        product = jax.jvp(lambda at: grad_phi(at)[0], (params,), (direction,))[1]
    else:
        e = settings.finite_step * optax.tree.norm(params) / (size + TINY)
        moved = jax.tree.map(lambda p, d: p + e * d, params, direction)
        product = jax.tree.map(lambda a, b: (a - b) / e, grad_phi(moved)[0], direction)
    return jax.tree.map(lambda g, h: g + 2.0 * rho * h, g_r, product), metrics


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
    ascent, metrics = phi_gradient(losses, state.params, settings.beta, settings.similarity)
    size = optax.tree.norm(ascent)
    direction = _scaled(jax.tree.map(jnp.negative, ascent), settings)
    loss = -metrics["forget"] + metrics["retain"]
    apart = replace(state, opt_state=loop.inner_opt)
    new, more = guarded_update(apart, {SUM: direction}, loss, combiner, optimizer)
    loop = loop._replace(phase=loop.phase + 1, inner_opt=new.opt_state)
    new = replace(new, opt_state=state.opt_state, loop_state=loop)
    return new, _metrics(metrics, more, loop, size, outer=0.0)


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
    direction, metrics = outer_gradient(losses, where, loop.rho, settings)
    size = metrics.pop("stationarity")
    loss = -metrics["forget"] + metrics["retain"]
    new, more = guarded_update(
        replace(state, params=start), {SUM: _scaled(direction, settings)}, loss, combiner, optimizer
    )
    loss_f = -metrics["forget"]
    seen = loop.most > 0
    forgotten = jnp.where(seen, 0.5 * (loop.forgotten + loss_f), loss_f)
    loop = loop._replace(
        phase=jnp.zeros_like(loop.phase),
        rho=loop.rho * settings.growth,
        forgotten=forgotten,
        most=jnp.maximum(loop.most, forgotten),
    )
    return replace(new, loop_state=loop), _metrics(metrics, more, loop, size, outer=1.0)


def _scaled(direction: Params, settings: OfmuSettings) -> Params:
    if not settings.normalise:
        return direction
    size = optax.tree.norm(direction) + TINY
    return jax.tree.map(lambda leaf: leaf / size, direction)


def _metrics(
    metrics: Metrics, more: Metrics, loop: OfmuState, size: Array, *, outer: float
) -> Metrics:
    return {
        **metrics,
        **more,
        "loss": metrics["retain"],
        "stationarity": size,
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
