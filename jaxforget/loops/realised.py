"""What a step does to the terms of its own batch, measured beside any loop."""

from dataclasses import replace
from typing import Any

from jaxforget.engine.step import Step, accumulated_terms
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import (
    Batches,
    Loop,
    Metrics,
    Objective,
    Reference,
    ScoreFn,
    Scores,
    State,
    TokenBatch,
)


def with_realised_changes(loop: Loop) -> Loop:
    """A loop that also logs how much each step changed the terms of its batch.

    Beside the first-order `predicted_change_<term>` of `geometric_disentangle` it shows whether
    the projection is in force: the two differ by the square of the step only.

    Args:
      loop: any; its updates stay bit for bit the same.
    Returns:
      A `Loop` with one more metric a term, `realised_change_<term>`: the term after the step less
      the term before, on the step's own batch and reference scores. Costs two forward passes.
    """

    def make(score: ScoreFn, objective: Objective, *parts: Any, accumulate: int = 1) -> Step:
        inner = loop.make(score, objective, *parts, accumulate=accumulate)

        def step(
            state: State, frozen: Params, batches: Batches, reference: Reference
        ) -> tuple[State, Metrics]:
            def score_trained(trained: Params, batch: TokenBatch, **options: Any) -> Scores:
                return score(merge(frozen, trained), batch, **options)

            def terms(params: Params) -> Metrics:
                return accumulated_terms(
                    objective, score_trained, params, batches, reference, accumulate
                )

            before = terms(state.params)
            state, metrics = inner(state, frozen, batches, reference)
            after = terms(state.params)
            changes = {f"realised_change_{name}": after[name] - before[name] for name in after}
            return state, {**metrics, **changes}

        return step

    return replace(loop, make=make)
