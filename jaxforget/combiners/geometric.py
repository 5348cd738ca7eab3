"""Geometric disentanglement: updates that leave protected losses unchanged to first order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.faces import MAX_VECTORS
from jaxforget.combiners.projections import Projection, keep_helpful, project
from jaxforget.combiners.sums import weighted_sum
from jaxforget.combiners.terms import (
    check_terms_of,
    finite_weights,
    names_of,
    number,
    weighted,
    whole,
)
from jaxforget.combiners.vectors import cosine, dot, norm, safe_divide, zeros
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, matches, merge, split
from jaxforget.engine.types import Combiner, Metrics

type Stage = Literal["update", "gradient"]
type Sides = Literal["one", "both"]
type Metric = Literal["second_moment", "identity"]


class GeometricState(NamedTuple):
    """What `geometric_disentangle` carries.

    Attributes:
      memory: earlier protected gradients at unit length, newest first, in scope; zeros are empty
        slots.
      second_moment: moving average of squared gradients in scope, float32; `()` for the identity.
      steps: int32, steps taken, for its bias correction.
      current: between `combine` and `finish` the protected gradients of this step by term, and the
        gradient of the rest; `()` otherwise, so that checkpoints do not hold it.
    """

    memory: tuple[Params, ...]
    second_moment: Any
    steps: Array
    current: Any = ()


@dataclass(frozen=True)
class _Plan:
    """The checked arguments of `geometric_disentangle`."""

    weights: Mapping[str, float]
    protect: tuple[str, ...]
    stage: Stage
    sides: Sides
    slots: int
    keep: float | None
    repair: float
    metric: Metric
    decay: float
    epsilon: float
    scope: str | None
    memory_dtype: Any
    duplicate: float


def geometric_disentangle(
    weights: Mapping[str, float],
    *,
    protect: Sequence[str] = ("retain",),
    covectors: int = 1,
    stage: Stage = "update",
    sides: Sides = "one",
    keep: float | None = None,
    repair: float = 0.0,
    metric: Metric = "second_moment",
    decay: float = 0.999,
    epsilon: float = 1e-8,
    scope: str | None = None,
    memory_dtype: str = "bfloat16",
    duplicate: float = 0.999,
) -> Combiner:
    """Any weighted sum of terms, moved to where it does no first-order harm to protected terms.

    With G = [g_1 .. g_k] the gradients of the protected terms (this step's, then up to
    `covectors` - their number of earlier steps') the variants are:

    * stage "update", sides "one" (default): after the optimizer, with D0 the update it realised
      (momentum, decay, clipping and all), D* = argmin ||D - D0||_M subject to G'D <= 0, that is
      D* = D0 - M^-1 G l, l >= 0. Nothing happens where D0 lowers the protected terms already.
      sides "both": subject to G'D = 0.
    * stage "gradient": before the optimizer, in whitened coordinates z = P^1/2 g with P = M^-1.
      sides "both": z - QQ'z, Q an orthonormal basis of P^1/2 G (one covector: plain removal of one
      component); `keep` returns the helpful tangent part, `repair` adds the protected gradients.
      sides "one": the nearest z with Z_r'z >= 0.

    What is guaranteed: in stage "update", <g_i, D*> <= 1e-6 ||g_i|| ||D0|| for every column, for
    *any* metric, so this step changes the protected terms of this step's batch to first order by
    nothing (or downwards), provided every leaf that moves is in scope and parameters are stored
    precisely enough to take the update (float32; bfloat16 rounds most of a small update away). In
    stage "gradient" only <P g_i, g> is made zero: that is the step's effect for an optimizer which
    does nothing but multiply by the same P (plain SGD with the identity). Momentum, decay, and
    Adam's own preconditioner void it; it is here as the published form and for comparison.

    The metric M = diag(sqrt(v) + epsilon) decides which entries absorb the correction. A combiner
    does not see the optimizer's v: it keeps its own average of squared gradients, bias-corrected
    and including the current step, so that the first step is projected too. In stage "update" v
    includes the protected gradients, which bounds the correction of entries that only they touch.
    "identity" keeps no such average and makes the smallest correction in the Euclidean sense.

    Memory: the second moment (float32) and `covectors` - len(protect) trees of `memory_dtype`, all
    in scope only. Time: one pull-back per term, (k + 1)^2 / 2 inner products.

    Args:
      weights: finite weight of each term in the plug-in direction, by name; a protected term may
        be absent (it then only protects).
      protect: names of the protected terms.
      covectors: k, the most covectors at once, 0..9 and, unless 0, at least len(protect). 0: the
        weighted sum itself, bit for bit, in one backward pass. Gradients of earlier steps beyond
        the current ones are first in, first out; near-duplicates do not enter.
      stage, sides: see above.
      keep: kappa >= 0, with stage "gradient" and sides "both": the part of the direction along
        those basis vectors where it agrees in sign with the protected gradient is kept, up to
        kappa times the length of the rest; None: all of the tangent part is removed.
      repair: weight >= 0 of the protected gradients added after the projection; stage "gradient",
        sides "both".
      metric: "second_moment" or "identity".
      decay: of the average of squares, in [0, 1); AdamW's beta2 makes P nearly the optimizer's
        (the authors' code has 0.98).
      epsilon: > 0.
      scope: regular expression on paths such as "layers/mlp/down": only these leaves are projected
        and remembered. Leaves outside pass unchanged, so the guarantee holds for the part in scope;
        it is global where nothing else moves: train only these leaves, or compose with
        `path_mask(scope)`. None: all leaves.
      memory_dtype: "bfloat16" or "float32", of the earlier gradients.
      duplicate: a gradient whose cosine with a remembered one exceeds this does not enter.
    Returns:
      A `Combiner`. Metrics: `predicted_change_T` and `raw_change_T`, <g_T, D> over all leaves with
      and without projection (stage "update": of the term T itself, nats; stage "gradient": per
      unit of learning rate, of the direction, negated); `cosine_rest_T` of T's gradient with the
      weighted sum of unprotected terms; `removed_share` ||D* - D0|| / ||D0||; `binding`, columns
      that changed the result; with memory, `uncovered_share`, the part of the current protected
      gradient outside the span of earlier ones.
    Raises:
      UserError: an argument out of range or without effect; at trace time, names that are not the
        objective's terms, or a scope that matches no leaf.
    Source: Zhou et al. 2025 (arXiv 2511.17100) and the authors' corrected formulation of 2026.
    """
    plan = _checked(
        weights, protect, covectors, stage, sides, keep, repair, metric, decay, epsilon, scope,
        memory_dtype, duplicate,
    )  # fmt: skip
    if covectors == 0:
        return weighted_sum(weights)

    def init(params: Params) -> GeometricState:
        inside = _inside(params, plan.scope)[0]
        store = jnp.dtype(plan.memory_dtype)
        return GeometricState(
            memory=tuple(zeros(inside, store) for _ in range(plan.slots)),
            second_moment=zeros(inside, jnp.float32) if plan.metric == "second_moment" else (),
            steps=jnp.zeros((), jnp.int32),
        )

    def combine(
        gradients: dict[str, Params], state: GeometricState, params: Params
    ) -> tuple[Params, GeometricState, Metrics]:
        check_terms_of("geometric_disentangle", {*plan.weights, *plan.protect}, gradients)
        direction = weighted(plan.weights, gradients)
        protected = {name: gradients[name] for name in plan.protect}
        state = _with_moment(plan, state, direction, protected)
        metrics = _cosines(plan, gradients, direction)
        if plan.stage == "update":
            return direction, state._replace(current=protected), metrics
        moved, memory, more = _move(plan, state, direction, protected, sign=-1.0)
        if plan.repair:
            parts = [direction_of for direction_of in protected.values()]
            added = weighted(dict.fromkeys(protected, plan.repair), protected)
            moved = jax.tree.map(jnp.add, moved, added) if parts else moved
        return moved, state._replace(memory=memory), {**metrics, **more}

    def finish(
        delta: Params, state: GeometricState, params: Params
    ) -> tuple[Params, GeometricState, Metrics]:
        moved, memory, metrics = _move(plan, state, delta, state.current, sign=1.0)
        return moved, state._replace(memory=memory, current=()), metrics

    return Combiner(init=init, combine=combine, finish=finish if stage == "update" else None)
