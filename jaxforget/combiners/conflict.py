"""Combiners that resolve conflicts between the terms' gradients.

All work on h_k = w_k g_k and see them through their Gram matrix alone, so that each costs one
reduction over the parameters and one sum, whatever the number of terms.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.faces import MAX_VECTORS, conflict_averse_weights, min_norm_weights
from jaxforget.combiners.terms import check_terms_of, finite_weights, number, weighted, whole
from jaxforget.combiners.vectors import combination, dot, gram, norm, safe_divide
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Combiner, Metrics

type Solve = Callable[[Array, Any], tuple[Array, Any]]
"""(Gram matrix `[k, k]` of the weighted gradients, state) -> (coefficients `[k]`, state)."""


def pcgrad(weights: Mapping[str, float], *, seed: int = 0) -> Combiner:
    """Projecting conflicting gradients: every gradient loses what opposes another one.

    In turn, h_i gives up its component along each original h_j (in random order) with which it has
    a negative product at that moment; the direction is the sum. Two terms in conflict: h_1 becomes
    orthogonal to h_2 and h_2 to h_1. No conflict: the weighted sum.

    Args:
      weights: weight >= 0 of each term by its name, at most 9 terms.
      seed: of the order, which matters from three terms on.
    Returns:
      A `Combiner`; its metrics are `cosine_A_B` of every two terms. State: int32 step count.
    Raises:
      UserError: bad weights; at trace time, names that are not the objective's terms.
    Source: Yu et al. 2020 (arXiv 2001.06782), algorithm 1.
    """
    whole("pcgrad", "seed", seed, 0)

    def solve(k_matrix: Array, step: Array) -> tuple[Array, Array]:
        k = k_matrix.shape[0]
        key = jax.random.fold_in(jax.random.key(seed), step)
        total = jnp.zeros(k, jnp.float32)
        for i, row_key in enumerate(jax.random.split(key, k)):
            order = jax.random.permutation(row_key, k)
            row = jnp.zeros(k, jnp.float32).at[i].set(1.0)
            for j in order:
                product = (row * k_matrix[j]).sum()
                share = safe_divide(product, k_matrix[j, j])
                row = row.at[j].add(jnp.where((product < 0) & (j != i), -share, 0.0))
            total = total + row
        return total, step + 1

    return _by_gram("pcgrad", weights, lambda: jnp.zeros((), jnp.int32), solve)


def cagrad(weights: Mapping[str, float], *, c: float = 0.5) -> Combiner:
    """Conflict-averse gradient: the direction near the sum that serves the worst term best.

    argmax over d of min_k <h_k, d> subject to ||d - g|| <= c ||g||, with g = sum_k h_k. The paper
    writes it about the mean; here it is about the sum, so that c = 0 is the weighted sum.

    Args:
      weights: weight >= 0 of each term by its name, at most 9 terms.
      c: radius in [0, 1); 0 is the weighted sum and costs one backward pass.
    Returns:
      A `Combiner` without state; its metrics are `cosine_A_B` of every two terms.
    Raises:
      UserError: bad weights or c; at trace time, names that are not the objective's terms.
    Source: Liu et al. 2021 (arXiv 2110.14048), eq. 3 and its dual.
    """
    radius = number("cagrad", "c", c, 0.0)
    if radius >= 1:
        raise UserError(f"cagrad: c must be below 1, got {c!r}")

    def solve(k_matrix: Array, state: tuple[()]) -> tuple[Array, tuple[()]]:
        ones = jnp.ones(k_matrix.shape[0], jnp.float32)
        if radius == 0:
            return ones, state
        w = conflict_averse_weights(k_matrix, radius)
        length = jnp.sqrt(jnp.maximum((w[:, None] * k_matrix * w[None, :]).sum(), 0.0))
        whole_length = jnp.sqrt(jnp.maximum(k_matrix.sum(), 0.0))
        # below rounding the point of the hull is zero and has no direction
        noise = 1e-6 * jnp.sqrt(jnp.diagonal(k_matrix).max())
        return ones + w * jnp.where(
            length > noise, radius * whole_length / jnp.maximum(length, 1e-30), 0.0
        ), state

    return _by_gram("cagrad", weights, tuple, solve)


def mgda(weights: Mapping[str, float], *, normalise: bool = False) -> Combiner:
    """Multiple-gradient descent: the shortest vector in the convex hull of the gradients.

    It lowers every term to first order, or is zero where that is impossible (a Pareto-stationary
    point). It never exceeds the shortest gradient, so a small retain gradient makes small steps.

    Args:
      weights: weight >= 0 of each term by its name, at most 9 terms; they scale the gradients.
      normalise: give every gradient unit length first.
    Returns:
      A `Combiner` without state; its metrics are `cosine_A_B` of every two terms.
    Raises:
      UserError: bad weights; at trace time, names that are not the objective's terms.
    Source: Desideri 2012; Sener & Koltun 2018 (arXiv 1810.04650), which uses Frank-Wolfe.
    """

    def solve(k_matrix: Array, state: tuple[()]) -> tuple[Array, tuple[()]]:
        if not normalise:
            return min_norm_weights(k_matrix), state
        scale = safe_divide(jnp.ones(()), jnp.sqrt(jnp.diagonal(k_matrix)))
        return scale * min_norm_weights(k_matrix * scale[:, None] * scale[None, :]), state

    return _by_gram("mgda", weights, tuple, solve)


def nash_mtl(weights: Mapping[str, float], *, iterations: int = 25) -> Combiner:
    """Nash bargaining: the direction sum a_k h_k with a > 0 and (K a)_k = 1 / a_k.

    The agreement maximises the product of the terms' first-order gains. It does not change when a
    gradient is rescaled; its length is sqrt(k) for k terms, so use it with norm-scaled steps or
    clipping. Solved by damped Newton steps on 1/2 a'Ka - sum log a, which is convex.

    Args:
      weights: weight >= 0 of each term by its name, at most 9 terms; 0 leaves a term out, any
        other value gives the same direction.
      iterations: Newton steps, >= 1.
    Returns:
      A `Combiner` without state; its metrics are `cosine_A_B` of every two terms. Where gradients
      are opposed (no gain for all) the answer is kept finite by a ridge of 1e-4.
    Raises:
      UserError: bad weights; at trace time, names that are not the objective's terms.
    Source: Navon et al. 2022 (arXiv 2202.01017), claim 3.2.
    """
    whole("nash_mtl", "iterations", iterations, 1)

    def solve(k_matrix: Array, state: tuple[()]) -> tuple[Array, tuple[()]]:
        k = k_matrix.shape[0]
        lengths = jnp.sqrt(jnp.diagonal(k_matrix))
        scale = safe_divide(jnp.ones(()), lengths)
        unit = k_matrix * scale[:, None] * scale[None, :]
        unit = jnp.where(jnp.eye(k, dtype=bool), 1.0 + 1e-4, unit)

        def newton(_: int, a: Array) -> Array:
            slope = (unit * a[None, :]).sum(axis=1) - 1.0 / a
            curvature = unit + jnp.diag(1.0 / a**2)
            step = jnp.linalg.solve(curvature, slope)
            decrement = jnp.sqrt(jnp.maximum((step * slope).sum(), 0.0))
            return a - step / (1.0 + jnp.where(decrement > 0.25, decrement, 0.0))

        bargain = jax.lax.fori_loop(0, iterations, newton, jnp.ones(k, jnp.float32))
        return bargain * scale, state

    return _by_gram("nash_mtl", weights, tuple, solve)


def orthogonal_retain(
    alpha: float, *, forget: str = "forget", retain: str = "retain", forget_weight: float = 1.0
) -> Combiner:
    """Forgetting first: the retain gradient acts only orthogonally to the forget gradient.

    The direction g_f + alpha (g_r - (<g_f, g_r> / ||g_f||^2) g_f), the first-order sibling of the
    bi-level method whose lower level is forgetting: retention is improved among directions that
    leave the forget term's first-order progress untouched.

    Args:
      alpha: weight >= 0 of the orthogonalised retain gradient.
      forget, retain: names of the two terms.
      forget_weight: >= 0, scales g_f.
    Returns:
      A `Combiner` without state; its metrics are `cosine_FORGET_RETAIN` and `removed_share`, the
      part of ||g_r|| that was removed.
    Raises:
      UserError: a bad number; at trace time, names that are not the objective's terms.
    Source: Reisizadeh et al. 2025, bi-level unlearning (published code; arXiv 2506.08164).
    """
    number("orthogonal_retain", "alpha", alpha, 0.0)
    number("orthogonal_retain", "forget_weight", forget_weight, 0.0)

    def combine(
        gradients: dict[str, Params], state: Any, params: Params
    ) -> tuple[Params, Any, Metrics]:
        check_terms_of("orthogonal_retain", (forget, retain), gradients)
        g_f, g_r = gradients[forget], gradients[retain]
        product, square, length = dot(g_f, g_r), dot(g_f, g_f), norm(g_r)
        share = safe_divide(product, square)
        direction = combination((forget_weight - alpha * share, alpha), (g_f, g_r))
        cosine = safe_divide(product, jnp.sqrt(square) * length)
        metrics = {f"cosine_{forget}_{retain}": cosine, "removed_share": jnp.abs(cosine)}
        return direction, state, metrics

    return Combiner(init=lambda params: (), combine=combine)


def _by_gram(
    who: str, weights: Mapping[str, float], start: Callable[[], Any], solve: Solve
) -> Combiner:
    """A combiner whose direction is sum_k c_k h_k, the coefficients a function of <h_i, h_j>."""
    fixed = finite_weights(who, weights)
    names = tuple(fixed)
    if len(names) > MAX_VECTORS:
        raise UserError(f"{who}: at most {MAX_VECTORS} terms, got {len(names)}")

    def combine(
        gradients: dict[str, Params], state: Any, params: Params
    ) -> tuple[Params, Any, Metrics]:
        check_terms_of(who, names, gradients)
        scaled = [weighted({name: fixed[name]}, gradients) for name in names]
        products = gram(scaled)
        coefficients, state = solve(products, state)
        return combination(coefficients, scaled), state, _cosines(names, products)

    return Combiner(init=lambda params: start(), combine=combine)


def _cosines(names: tuple[str, ...], products: Array) -> Metrics:
    lengths = jnp.sqrt(jnp.diagonal(products))
    return {
        f"cosine_{a}_{b}": safe_divide(products[i, j], lengths[i] * lengths[j])
        for i, a in enumerate(names)
        for j, b in enumerate(names[i + 1 :], start=i + 1)
    }
