"""Influence of a forget set approximated by one step against it, and training that prepares it."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxforget.combiners.terms import number
from jaxforget.edits.checks import STACKED, check_alike
from jaxforget.engine.errors import UserError
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params, matches, merge, path_string
from jaxforget.engine.types import Batches, Metrics, Reference, ScoreFn, Terms, TokenBatch
from jaxforget.objectives import ObjectiveSpec

PENALTY = "penalty"
ROOT = 1e-12
"""Inside the roots of `gradient_norms`, so that a gradient of zero has a derivative."""


def mean_gradient(
    score: ScoreFn,
    params: Params,
    batches: Iterable[TokenBatch],
    *,
    frozen: Params | None = None,
) -> Params:
    """Gradient of the mean negative log-likelihood of all labelled targets of a set.

    The batches' sums are divided by the set's own count: how it is divided into batches does not
    matter.

    Args:
      score: the model.
      params: floating leaves.
      batches: packed rows, all of one shape.
      frozen: further leaves of the model, merged with `params` for `score`.
    Returns:
      float32 tree like `params`, in nats.
    Raises:
      UserError: no labelled target in any batch.
    """

    grown = _compiled(score)
    total, count = jax.tree.map(_zeros, params), jnp.zeros((), jnp.int32)
    for batch in batches:
        total, count = grown(total, count, params, frozen or {}, batch)
    if not int(count):
        raise UserError("mean_gradient: the set has no labelled target")
    return jax.tree.map(lambda leaf: leaf / count.astype(jnp.float32), total)


@functools.lru_cache(maxsize=8)
def _compiled(score: ScoreFn) -> Any:
    def add(total: Params, count: Array, params: Params, rest: Params, batch: TokenBatch) -> Any:
        def nll(p: Params) -> tuple[Array, Array]:
            scores = score(merge(rest, p), batch)
            return -(scores.logp * scores.mask).sum(), scores.mask.sum().astype(jnp.int32)

        more, tokens = jax.grad(nll, has_aux=True)(params)
        return jax.tree.map(lambda a, b: a + _float32(b), total, more), count + tokens

    return jax.jit(add, donate_argnums=(0, 1), compiler_options=compiler_options())


def influence_approximation(
    params: Params,
    gradient_forget: Params,
    gradient_retain: Params,
    optimizer: optax.GradientTransformation,
) -> Params:
    """One optimizer step along the retain gradient minus the forget gradient.

    The published optimizer is Adam with learning rate 1e-3. Its first step from a fresh state is
    learning rate times the sign of the gradient, so that the scale of the gradients hardly
    matters; with `optax.sgd` it does.

    Args:
      params: floating leaves, best near a minimum of the loss on both sets together.
      gradient_forget: of the mean loss of the forget set, like `params`; see `mean_gradient`.
      gradient_retain: of the mean loss of the retain set; it corrects what the step would harm.
      optimizer: takes its first step.
    Returns:
      Parameters of the same dtypes.
    Raises:
      UserError: trees that differ.
    Source: Influence Approximation Unlearning (arXiv 2507.23257) and its published code.
    """
    who = "influence_approximation"
    check_alike(who, "gradient_forget", gradient_forget, params)
    check_alike(who, "gradient_retain", gradient_retain, params)

    @jax.jit
    def stepped(params: Params, forget: Params, retain: Params) -> Params:
        wide, forget, retain = (jax.tree.map(_float32, t) for t in (params, forget, retain))
        direction = jax.tree.map(jnp.subtract, retain, forget)
        update, _ = optimizer.update(direction, optimizer.init(wide), wide)
        return jax.tree.map(lambda p, w, u: (w + u).astype(p.dtype), params, wide, update)

    return stepped(params, gradient_forget, gradient_retain)


def gradient_restriction(
    loss: Callable[..., Array], *, scale: float = 0.005, stacked: str = STACKED
) -> Callable[..., Array]:
    """The loss plus `scale` times the norms of its gradient, for training before forgetting.

    At a point where the gradient vanishes, the influence of the forget set is its own gradient.
    Differentiating the result takes a backward pass through the backward pass. The norm of a
    mean is no mean of norms: the value depends on the batch, so do not accumulate it over parts.

    Args:
      loss: (params, *others) -> scalar, twice differentiable in `params`.
      scale: >= 0; 0 gives `loss` itself.
      stacked: see `gradient_norms`.
    Returns:
      A function like `loss`.
    Raises:
      UserError: a scale out of range.
    Source: Influence Approximation Unlearning (arXiv 2507.23257) and its published code.
    """
    if number("gradient_restriction", "scale", scale) == 0:
        return loss

    @functools.wraps(loss)
    def restricted(params: Params, *others: Any) -> Array:
        value, gradient = jax.value_and_grad(loss)(params, *others)
        return value + scale * gradient_norms(gradient, stacked=stacked)

    return restricted


def penalised(spec: ObjectiveSpec, term: str) -> ObjectiveSpec:
    """An objective with the gradient norms of one of its terms as a further term, `penalty`.

    Args:
      spec: any objective. Its micro-batches must not be accumulated: the norm of a mean gradient
        is no mean of norms.
      term: whose gradient.
    Source: IAU (arXiv 2507.23257), gradient restriction.
    """

    def objective(
        score: ScoreFn, params: Params, batches: Batches, reference: Reference
    ) -> tuple[Terms, Metrics]:
        def one(p: Params) -> tuple[Array, tuple[Terms, Metrics]]:
            terms, metrics = spec.objective(score, p, batches, reference)
            return terms[term], (terms, metrics)

        gradient, (terms, metrics) = jax.grad(one, has_aux=True)(params)
        return {**terms, PENALTY: gradient_norms(gradient)}, metrics

    return replace(spec, objective=objective, terms=(*spec.terms, PENALTY))


def gradient_norms(gradient: Params, *, stacked: str = STACKED) -> Array:
    """Sum over tensors of sqrt(||g||_2^2 + 1e-12).

    Args:
      gradient: floating leaves.
      stacked: regular expression on paths of leaves that hold one tensor a layer on axis 0.
    Returns:
      Scalar, float32 or wider.
    """
    on_layers = matches(stacked)

    def of(path: tuple[Any, ...], leaf: Array) -> Array:
        squares = jnp.square(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)))
        first = 1 if on_layers(path_string(path)) and leaf.ndim else 0
        return jnp.sqrt(squares.sum(tuple(range(first, leaf.ndim))) + ROOT).sum()

    norms = jax.tree_util.tree_map_with_path(of, gradient)
    return sum(jax.tree.leaves(norms), jnp.zeros(()))


def _float32(leaf: Array) -> Array:
    return leaf.astype(jnp.float32)


def _zeros(leaf: Array) -> Array:
    return jnp.zeros_like(leaf, jnp.float32)
