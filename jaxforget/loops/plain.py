"""The plain loop: one update of the trained leaves per batch."""

from typing import Any

import jax.numpy as jnp
import optax

from jaxforget.engine.step import Step, accumulated_gradients, guarded_update
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import (
    Batches,
    Combiner,
    Loop,
    Metrics,
    Objective,
    Reference,
    ScoreFn,
    Scores,
    State,
    TokenBatch,
)


def plain(
    score: ScoreFn,
    objective: Objective,
    combiner: Combiner,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
) -> Step:
    """One optimizer step on the terms of `objective`.

    Args:
      score: model as a pure function of *all* its parameters.
      objective: see `Objective`.
      combiner: see `Combiner`.
      optimizer: optax transformation over the trained leaves.
      accumulate: micro-batches per step, >= 1; must divide the rows of every role.
    Returns:
      A pure function; its metrics are the terms by name, the objective's and combiner's scalars,
      `loss` (weighted sum where the combiner is one, else plain sum), `gradient_norm`,
      `update_norm`, `skipped`, `skipped_in_a_row`.
    """

    def step(
        state: State, frozen: Params, batches: Batches, reference: Reference
    ) -> tuple[State, Metrics]:
        def score_trained(trained: Params, batch: TokenBatch, **options: Any) -> Scores:
            return score(merge(frozen, trained), batch, **options)

        gradients, terms, metrics = accumulated_gradients(
            objective, combiner, score_trained, state.params, batches, reference, accumulate
        )
        weights = combiner.weights or dict.fromkeys(terms, 1.0)
        loss = sum((weights[name] * term for name, term in terms.items()), jnp.zeros(()))
        state, more = guarded_update(state, gradients, loss, combiner, optimizer)
        return state, {**metrics, **terms, **more, "loss": loss}

    return step


PLAIN = Loop(make=plain, init=lambda params, optimizer: ())
"""The loop of most methods."""
