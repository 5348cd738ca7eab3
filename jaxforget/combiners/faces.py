"""Small quadratic programs in the span of a few gradients, solved exactly inside the program.

All of them see the gradients through their Gram matrix K `[k, k]` alone. Which inequalities bind
is found by trying all 2^k sets of them at once, so that nothing iterates on the device and no
library for linear algebra is called. Everything is float32.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget.combiners.vectors import safe_divide

MAX_VECTORS = 9
"""Largest k: 512 sets of binding inequalities."""

_DEPENDENT = 1e-5
"""A vector of unit length whose squared distance from the others' span is less adds nothing."""


def cone_multipliers(gram: Array, products: Array) -> tuple[Array, Array]:
    """argmin over l >= 0 of 1/2 l'Kl - b'l, the multipliers of a projection onto a cone.

    With K = G'MG and b = G'x, the vector x - M G l is the point nearest to x in the metric M^-1
    whose product with every column of G is at most 0.

    Args:
      gram: K, float32 `[k, k]`, positive semidefinite, k <= `MAX_VECTORS`; columns of any length,
        zero columns are ignored.
      products: b, float32 `[k]`.
    Returns:
      l float32 `[k]`, exactly 0 where an inequality does not bind, and the inverse of K on the
      binding set, `[k, k]` with zeros elsewhere, for refinement against a measured residual.
    """
    lengths, unit = _normalised(gram)
    scaled = safe_divide(products, lengths)
    size = jnp.maximum(jnp.abs(scaled).max(), jnp.finfo(jnp.float32).tiny)
    b = jnp.where(jnp.isfinite(size), scaled / size, scaled)
    inverses, _ = _face_inverses(unit)
    multipliers = _apply(inverses, b)
    # negative multipliers and violated inequalities are faults; the least faulty set is the optimum
    slack = (b[None] - _apply(unit, multipliers)) * (lengths > 0)[None]
    fault = jnp.maximum((-multipliers).max(axis=-1), slack.max(axis=-1))
    best = jnp.argmin(fault)
    chosen = jnp.maximum(multipliers[best], 0.0)
    scale = safe_divide(jnp.ones_like(lengths), lengths)
    inverse = inverses[best] * scale[:, None] * scale[None, :]
    return chosen * size * scale, inverse


def min_norm_weights(gram: Array) -> Array:
    """Weights on the simplex that make sum_i w_i g_i shortest.

    Args:
      gram: float32 `[k, k]`, 1 <= k <= `MAX_VECTORS`.
    Returns:
      float32 `[k]`, >= 0, sum 1.
    """
    k = gram.shape[0]
    constant, _, valid = _simplex_faces(gram, jnp.zeros(k, jnp.float32))
    return _best_on_simplex(constant, valid, gram, jnp.zeros(k, jnp.float32))


def conflict_averse_weights(gram: Array, c: float) -> Array:
    """argmin over the simplex of <g_w, g> + c ||g|| ||g_w||, with g the sum and g_w = sum w_i g_i.

    The norm is replaced by min over t > 0 of (||g_w||^2 / t + t) / 2: a quadratic program for every
    t, and one equation ||g_w(t)|| = t, solved by bisection.

    Args:
      gram: float32 `[k, k]`, 1 <= k <= `MAX_VECTORS`.
      c: > 0.
    Returns:
      float32 `[k]`, >= 0, sum 1.
    """
    size = jnp.maximum(jnp.diagonal(gram).max(), jnp.finfo(jnp.float32).tiny)
    unit = gram / size
    linear = unit.sum(axis=1)
    strength = c * jnp.sqrt(jnp.maximum(linear.sum(), 0.0))
    constant, slope, valid = _simplex_faces(unit, linear)

    def weights(t: Array) -> Array:
        ratio = t / jnp.maximum(strength, jnp.finfo(jnp.float32).tiny)
        return _best_on_simplex(constant - ratio * slope, valid, unit, ratio * linear)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        w = weights(middle)
        longer = jnp.sqrt(jnp.maximum((w * _apply(unit, w)).sum(), 0.0)) > middle
        return jnp.where(longer, middle, low), jnp.where(longer, high, middle)

    ends = (jnp.zeros(()), jnp.ones(()))
    low, high = jax.lax.fori_loop(0, 30, halve, ends)
    return weights(0.5 * (low + high))


def orthonormal_rows(gram: Array) -> Array:
    """Coefficients C `[k, k]` with C K C' = 1: row i makes the i-th vector of an orthonormal basis.

    Gram-Schmidt in order, twice; a vector that depends on the earlier ones gets a row of zeros.
    """
    k = gram.shape[0]
    lengths, unit = _normalised(gram)
    rows: list[Array] = []
    for i in range(k):
        row = jnp.zeros(k, jnp.float32).at[i].set(1.0)
        for _ in range(2):
            for other in rows:
                row = row - (_apply(unit, other) * row).sum() * other
        squared = (row * _apply(unit, row)).sum()
        independent = (squared > _DEPENDENT) & (lengths[i] > 0)
        rows.append(jnp.where(independent, row / jnp.sqrt(jnp.maximum(squared, 1e-12)), 0.0))
    return jnp.stack(rows) * safe_divide(jnp.ones_like(lengths), lengths)[None, :]


def _normalised(gram: Array) -> tuple[Array, Array]:
    """(lengths `[k]`, Gram matrix of the vectors at unit length)."""
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0))
    return lengths, safe_divide(gram, lengths[:, None] * lengths[None, :])


def _apply(matrix: Array, vector: Array) -> Array:
    """Product of matrices `[..., k, k]` and vectors `[..., k]`, in full float32."""
    shape = jnp.broadcast_shapes(matrix.shape[:-2], vector.shape[:-1])
    k = vector.shape[-1]
    wide = jnp.broadcast_to(vector[..., None, :], (*shape, k, k))
    return (jnp.broadcast_to(matrix, (*shape, k, k)) * wide).sum(axis=-1)


def _face_inverses(unit: Array) -> tuple[Array, Array]:
    """Inverses of K on all subsets: (`[2^k, k, k]` with zeros elsewhere, used `[2^k, k]`).

    Gauss-Jordan on all subsets at once. K has a unit diagonal and is semidefinite, so the pivots
    need no exchange; a vector whose pivot vanishes depends on the earlier ones and is left out.
    """
    k = unit.shape[0]
    subsets = np.array(list(itertools.product((0.0, 1.0), repeat=k)), np.float32).reshape(-1, k)
    used = jnp.asarray(subsets)
    eye = jnp.broadcast_to(jnp.eye(k, dtype=jnp.float32), (len(subsets), k, k))
    left = unit[None] * used[:, :, None] * used[:, None, :]
    table = jnp.concatenate([left, eye], axis=-1)
    for i in range(k):
        pivot = table[:, i, i]
        good = pivot > _DEPENDENT
        row = table[:, i] / jnp.where(good, pivot, 1.0)[:, None]
        others = table - table[:, :, i : i + 1] * row[:, None, :]
        done = others.at[:, i].set(row)
        table = jnp.where(good[:, None, None], done, table)
        used = used.at[:, i].multiply(good)
    return table[:, :, k:] * used[:, :, None] * used[:, None, :], used


def _simplex_faces(gram: Array, linear: Array) -> tuple[Array, Array, Array]:
    """Stationary points of 1/2 w'Kw + r a'w with sum w = 1 on every face: w = constant - r slope.

    Returns:
      constant, slope float32 `[2^k, k]`, and valid bool `[2^k]`.
    """
    diagonal = jnp.diagonal(gram)
    # on the simplex 11' adds a constant, and makes K invertible where gradients are opposed
    lift = jnp.maximum(diagonal.min(), 1e-6 * diagonal.max())
    lengths, unit = _normalised(gram + lift)
    inverses, used = _face_inverses(unit)
    scale = safe_divide(jnp.ones_like(lengths), lengths)
    ones = _apply(inverses, scale[None] * used) * scale[None]
    toward = _apply(inverses, (scale * linear)[None] * used) * scale[None]
    total = ones.sum(axis=-1, keepdims=True)
    constant = safe_divide(ones, total)
    slope = toward - constant * toward.sum(axis=-1, keepdims=True)
    return constant, slope, total[:, 0] > 0


def _best_on_simplex(points: Array, valid: Array, gram: Array, linear: Array) -> Array:
    """The candidate that satisfies the optimality conditions of 1/2 w'Kw + a'w best."""
    slopes = _apply(gram, points) + linear[None]
    level = (points * slopes).sum(axis=-1, keepdims=True)
    size = jnp.diagonal(gram).max() + jnp.abs(linear).max() + jnp.finfo(jnp.float32).tiny
    fault = jnp.maximum((-points).max(axis=-1), ((level - slopes) / size).max(axis=-1))
    best = jnp.argmin(jnp.where(valid, fault, jnp.inf))
    positive = jnp.maximum(points[best], 0.0)
    total = positive.sum()
    fallback = jnp.full_like(positive, 1.0 / positive.shape[0])
    return jnp.where(total > 0, positive / jnp.where(total > 0, total, 1.0), fallback)
