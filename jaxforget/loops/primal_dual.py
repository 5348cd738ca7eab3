"""A constraint instead of a weight: forget as long as the retain loss stays below a bound."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

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
)
from jaxforget.loops.plain import plain


@dataclass(frozen=True)
class PrimalDualSettings:
    """Of `primal_dual`.

    Attributes:
      bound: epsilon, largest retain loss wanted, nats a token.
      start: lambda before the first dual step, >= 0.
      rate: eta of the dual ascent, >= 0; 0 keeps lambda.
      warmup: steps before lambda moves, >= 0.
    """

    bound: float = 0.3
    start: float = 100.0
    rate: float = 5.0
    warmup: int = 0

    def __post_init__(self) -> None:
        for name in ("start", "rate", "warmup"):
            if not getattr(self, name) >= 0:
                raise UserError(f"pdu: {name} must be at least 0, got {getattr(self, name)}")


def primal_dual(settings: PrimalDualSettings = PrimalDualSettings()) -> Loop:
    """Minimise forget + lambda (retain - bound), then lambda <- max(0, lambda + eta (..)).

    The dual step follows every optimizer step; the peer takes one at every micro-batch.

    Args:
      settings: see `PrimalDualSettings`.
    Returns:
      A `Loop` whose state is lambda, a float32 scalar; metric `dual`. The objective has the terms
      `forget` and `retain`, the combiner is a weighted sum whose weight of `retain` multiplies
      lambda.
    Source: PDU in open-unlearning; Entesari et al. 2025 (arXiv 2506.05314).
    """

    def init(params: Params, optimizer: Any) -> Array:
        return jnp.float32(settings.start)

    def make(
        score: ScoreFn,
        objective: Objective,
        combiner: Combiner,
        optimizer: optax.GradientTransformation,
        *,
        accumulate: int = 1,
    ) -> Step:
        weights = combiner.weights
        if weights is None or set(weights) != {"forget", "retain"}:
            raise UserError("pdu: needs a weighted sum of the terms forget and retain")

        def step(
            state: State, frozen: Params, batches: Batches, reference: Reference
        ) -> tuple[State, Metrics]:
            dual: Array = state.loop_state
            now: Any = {"forget": weights["forget"], "retain": weights["retain"] * dual}
            inner = plain(
                score, objective, replace(combiner, weights=now), optimizer, accumulate=accumulate
            )
            moving = state.step >= settings.warmup
            state, metrics = inner(state, frozen, batches, reference)
            excess = metrics["retain"] - settings.bound
            raised = jnp.maximum(0.0, dual + settings.rate * excess)
            finite = jnp.isfinite(excess) & moving
            state = replace(state, loop_state=jnp.where(finite, raised, dual))
            return state, {**metrics, "dual": dual}

        return step

    return Loop(make=make, init=init)
