"""Transforms of the optimizer's update that a method can carry, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxforget import combiners
from jaxforget.combiners import Finisher, compose, fisher_weighted, largest, saliency_mask
from jaxforget.combiners.sparse import Per
from jaxforget.edits import importance, mean_gradient
from jaxforget.edits.importance import Estimator
from jaxforget.edits.material import Material
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Combiner

type Role = Literal["forget", "retain"]


@dataclass(frozen=True)
class Measured:
    """A finisher whose state is measured on the data before the first step.

    Attributes:
      finisher: its `init` gives a state of the right shapes that lets every update pass.
      measure: material -> the state.
      role: data set it reads.
    """

    finisher: Finisher
    measure: Callable[[Material], Any]
    role: str


type Prepare = Callable[[Material, Any], Any]
"""(material, the combiner's state) -> the state with all that is measured filled in."""


def salient(share: float = 0.5, *, role: Role = "forget", per: Per = "all") -> Measured:
    """Only the entries where the gradient of a set's NLL is largest in magnitude move.

    Args:
      share: of entries that move, in (0, 1].
      role: whose gradient.
      per: rank over "all" entries together, or within each "leaf".
    Raises:
      UserError: a share out of range.
    Source: Fan et al. 2023, SalUn (arXiv 2310.12508), eq. 3-4.
    """
    if not 0 < share <= 1:
        raise UserError(f"saliency_mask: share must be above 0 and at most 1, got {share}")

    def measure(material: Material) -> Params:
        gradient = mean_gradient(
            material.score, material.params, material.passes(role), frozen=material.frozen
        )
        return jax.jit(lambda tree: largest(tree, share, per=per))(gradient)

    def everything(params: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)

    return Measured(Finisher(everything, saliency_mask({}).finish), measure, role)


def weighted_by_importance(
    *,
    role: Role = "retain",
    mode: Literal["divide", "multiply"] = "divide",
    damping: float = 1.0,
    estimator: Estimator = "squared_batch",
) -> Measured:
    """Scale the update by every entry's importance for a data set, see `fisher_weighted`.

    Args:
      role: whose importance.
      mode, damping: see `fisher_weighted`.
      estimator: see `jaxforget.edits.importance`.
    Raises:
      UserError: as these two.
    """
    finish = fisher_weighted({}, mode=mode, damping=damping).finish

    def measure(material: Material) -> Params:
        batches = material.passes(role, singly=estimator == "per_example")
        found = importance(
            material.score, material.params, batches, estimator=estimator, frozen=material.frozen
        )
        return fisher_weighted(found, mode=mode, damping=damping).init(material.params)

    def even(params: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.float32), params)

    return Measured(Finisher(even, finish), measure, role)


FINISHERS: Mapping[str, Callable[..., Finisher | Measured]] = {
    "fisher_weighted": weighted_by_importance,
    "ignore_top_k": combiners.ignore_top_k,
    "keep_top_k": combiners.keep_top_k,
    "layer_mask": combiners.layer_mask,
    "multi_step_sparse": combiners.multi_step_sparse,
    "path_mask": combiners.path_mask,
    "saliency_mask": salient,
    "sign_top_k": combiners.sign_top_k,
}
"""What `method.finishers` can name."""


def finished(
    combiner: Combiner, finishers: Sequence[Finisher | Measured]
) -> tuple[Combiner, Prepare | None]:
    """The combiner followed by finishers, and what fills the state of those that are measured."""
    plain = [each.finisher if isinstance(each, Measured) else each for each in finishers]
    composed = compose(combiner, *plain)
    if not any(isinstance(each, Measured) for each in finishers):
        return composed, None

    def prepare(material: Material, state: Any) -> Any:
        own, others = state
        filled = tuple(
            each.measure(material) if isinstance(each, Measured) else mine
            for each, mine in zip(finishers, others, strict=True)
        )
        return own, filled

    return composed, prepare
