"""Geometric disentanglement: updates that leave protected losses unchanged to first order."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.geometric_plan import Metric, Plan, Sides, Stage, checked
from jaxforget.combiners.projections import project, remember, uncovered
from jaxforget.combiners.sums import weighted_sum
from jaxforget.combiners.terms import (
    check_terms_of,
    finite_weights,
    names_of,
    weighted,
)
from jaxforget.combiners.vectors import combination, cosine, dot, norm, safe_divide, zeros
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, matches, merge, split
from jaxforget.engine.types import Combiner, Metrics


class GeometricState(NamedTuple):
    """What `geometric_disentangle` carries.

    Attributes:
      memory: earlier protected gradients at unit length, newest first, in scope; zeros are empty
        slots.
      second_moment: moving average of squared gradients in scope, float32; `()` for the identity.
      steps: int32, steps taken, for its bias correction.
      current: between `combine` and `finish` the protected gradients of this step by term; `()`
        otherwise, so that checkpoints do not hold them.
    """

    memory: tuple[Params, ...]
    second_moment: Any
    steps: Array
    current: Any = ()


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
    and including the current step, so that the first step is projected too. v includes the
    protected gradients: an entry that only they touch would otherwise have P = 1 / epsilon and take
    the whole correction.
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
      A `Combiner`. Metrics, for every protected term T: `predicted_change_T` and `raw_change_T`,
        with and without projection, in stage "update" the first-order change <g_T, D> of the term
        over *all* leaves, in stage "gradient" -<P g_T, g> in scope (per unit of learning rate);
        `cosine_U_T` with the gradient of every unprotected term U; `uncovered_T`, the share of the
        whitened gradient outside the span of earlier ones (where there is memory). Besides these
        `removed_share`, ||D* - D0|| / ||D0||, and `binding`, the number of columns that acted.
    Raises:
      UserError: an argument out of range or without effect; at trace time, names that are not the
        objective's terms, or a scope that matches no leaf.
    Source: Zhou et al. 2025 (arXiv 2511.17100) and the authors' corrected formulation of 2026.
    """
    plan = checked(
        Plan(
            weights=finite_weights("geometric_disentangle", weights, least=None),
            protect=names_of("geometric_disentangle", "protect", protect),
            slots=max(covectors - len(tuple(protect)), 0),
            stage=stage,
            sides=sides,
            keep=keep,
            metric=metric,
            decay=decay,
            epsilon=epsilon,
            scope=scope,
            duplicate=duplicate,
        ),
        covectors,
        repair,
        memory_dtype,
    )
    if covectors == 0:
        return weighted_sum(weights)

    def init(params: Params) -> GeometricState:
        inside, _ = _divide(params, scope)
        return GeometricState(
            memory=tuple(zeros(inside, jnp.dtype(memory_dtype)) for _ in range(plan.slots)),
            second_moment=zeros(inside, jnp.float32) if metric == "second_moment" else (),
            steps=jnp.zeros((), jnp.int32),
        )

    def combine(
        gradients: dict[str, Params], state: GeometricState, params: Params
    ) -> tuple[Params, GeometricState, Metrics]:
        check_terms_of("geometric_disentangle", {*plan.weights, *plan.protect}, gradients)
        direction = weighted(plan.weights, gradients)
        protected = {name: gradients[name] for name in plan.protect}
        state = _with_squares(plan, state, direction, protected)
        cosines = _cosines(plan, gradients)
        if stage == "update":
            return direction, state._replace(current=protected), cosines
        moved, state, metrics = _move(plan, state, direction, protected)
        if repair:
            moved = combination((1.0, *(repair for _ in protected)), (moved, *protected.values()))
        return moved, state, {**cosines, **metrics}

    def finish(
        delta: Params, state: GeometricState, params: Params
    ) -> tuple[Params, GeometricState, Metrics]:
        moved, state, metrics = _move(plan, state, delta, state.current)
        return moved, state._replace(current=()), metrics

    return Combiner(init=init, combine=combine, finish=finish if stage == "update" else None)


def _divide(tree: Params, scope: str | None) -> tuple[Params, Params]:
    """(leaves in scope, the others)."""
    if scope is None:
        return tree, {}
    inside, outside = split(tree, matches(scope))
    if not inside:
        raise UserError(f"geometric_disentangle: scope {scope!r} matches no trained leaf")
    return inside, outside


def _with_squares(
    plan: Plan, state: GeometricState, direction: Params, protected: dict[str, Params]
) -> GeometricState:
    """The state with this step's squared gradients in its average."""
    steps = state.steps + 1
    if plan.metric == "identity":
        return state._replace(steps=steps)
    # entries that only a protected gradient touches would otherwise absorb every correction
    counted = [direction, *protected.values()]

    def leaf(old: Array, *gradients: Array) -> Array:
        squares = sum((jnp.square(g.astype(jnp.float32)) for g in gradients), jnp.zeros(()))
        return plan.decay * old + (1.0 - plan.decay) * squares

    inside = [_divide(tree, plan.scope)[0] for tree in counted]
    return state._replace(
        steps=steps, second_moment=jax.tree.map(leaf, state.second_moment, *inside)
    )


def _preconditioner(plan: Plan, state: GeometricState) -> Params | None:
    """P = 1 / (sqrt(v) + epsilon) in scope; None for the identity."""
    if plan.metric == "identity":
        return None
    correction = 1.0 - plan.decay ** state.steps.astype(jnp.float32)
    return jax.tree.map(
        lambda v: 1.0 / (jnp.sqrt(v / correction) + plan.epsilon), state.second_moment
    )


def _move(
    plan: Plan, state: GeometricState, x: Params, protected: dict[str, Params]
) -> tuple[Params, GeometricState, Metrics]:
    """Project an update (stage "update") or a direction, remember, and measure."""
    inside, outside = _divide(x, plan.scope)
    current = [_divide(tree, plan.scope)[0] for tree in protected.values()]
    scale = _preconditioner(plan, state)
    moved, found = project(
        inside,
        [*current, *state.memory],
        scale,
        whiten=plan.stage == "gradient",
        one_sided=plan.sides == "one",
        keep=plan.keep,
        fresh=len(current),
    )
    metrics: Metrics = {"binding": found.binding}
    whole_update = merge(outside, moved) if outside else moved
    for i, (name, gradient) in enumerate(protected.items()):
        if plan.stage == "update":
            changes = dot(gradient, whole_update), dot(gradient, x)
        else:
            changes = -dot(current[i], moved, scale), -dot(current[i], inside, scale)
        metrics[f"predicted_change_{name}"], metrics[f"raw_change_{name}"] = changes
        if state.memory:
            metrics[f"uncovered_{name}"] = uncovered(found.gram, i, len(current))
    difference = jax.tree.map(
        lambda a, b: a.astype(jnp.float32) - b.astype(jnp.float32), moved, inside
    )
    metrics["removed_share"] = safe_divide(norm(difference), norm(x))
    memory = remember(state.memory, current, found.gram, plan.duplicate)
    return whole_update, state._replace(memory=memory), metrics


def _cosines(plan: Plan, gradients: dict[str, Params]) -> Metrics:
    return {
        f"cosine_{other}_{name}": cosine(gradients[other], gradients[name])
        for name in plan.protect
        for other in plan.weights
        if other not in plan.protect
    }
