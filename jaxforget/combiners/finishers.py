"""Transforms of the optimizer's realised update, and how they are chained behind a combiner."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxforget.engine.tree import Params
from jaxforget.engine.types import Combiner, Metrics

STILL = -0.0
"""Update of an entry that must not move: p + (-0.0) is p bit for bit, while -0.0 + 0.0 is 0.0."""


@dataclass(frozen=True)
class Finisher:
    """The part of a combiner that acts after the optimizer.

    Attributes:
      init: params -> state (any pytree).
      finish: (update, state, params) -> (update, state, metrics); the update is added to params.
    """

    init: Callable[[Params], Any]
    finish: Callable[[Params, Any, Params], tuple[Params, Any, Metrics]]


def compose(combiner: Combiner, *finishers: Finisher) -> Combiner:
    """A combiner followed by transforms of the update.

    The combiner's own `finish` comes first, then the finishers in order; what must hold of the
    update that is applied has to come last. A plain weighted sum keeps its single backward pass.

    A projection followed by a mask of single entries loses its guarantee; a mask of whole leaves
    keeps it where the projection's `scope` is the same expression.

    Args:
      combiner: any.
      finishers: zero or more, e.g. `path_mask`, `keep_top_k`; with none the combiner is returned.
    Returns:
      A `Combiner` whose state is (the combiner's, the finishers').
    """
    if not finishers:
        return combiner

    def init(params: Params) -> tuple[Any, tuple[Any, ...]]:
        return combiner.init(params), tuple(each.init(params) for each in finishers)

    def combine(
        gradients: dict[str, Params], state: Any, params: Params
    ) -> tuple[Params, Any, Metrics]:
        direction, own, metrics = combiner.combine(gradients, state[0], params)
        return direction, (own, state[1]), metrics

    def finish(delta: Params, state: Any, params: Params) -> tuple[Params, Any, Metrics]:
        own, others = state
        metrics: Metrics = {}
        if combiner.finish is not None:
            delta, own, metrics = combiner.finish(delta, own, params)
        after = []
        for each, mine in zip(finishers, others, strict=True):
            delta, mine, more = each.finish(delta, mine, params)
            metrics = {**metrics, **more}
            after.append(mine)
        return delta, (own, tuple(after)), metrics

    return Combiner(init=init, combine=combine, finish=finish, weights=combiner.weights)
