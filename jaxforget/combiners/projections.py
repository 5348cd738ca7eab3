"""Projections of a tree onto what a few other trees allow, in a diagonal metric."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.faces import cone_multipliers, orthonormal_rows
from jaxforget.combiners.vectors import dot, gram, norm, safe_divide, subtract
from jaxforget.engine.tree import Params


class Found(NamedTuple):
    """What a projection learned about its columns.

    Attributes:
      gram: G'PG, float32 `[k, k]`.
      binding: how many columns acted, float32.
    """

    gram: Array
    binding: Array


def project(
    x: Params,
    columns: Sequence[Params],
    scale: Params | None = None,
    *,
    whiten: bool = False,
    one_sided: bool = False,
    keep: float | None = None,
    fresh: int = 1,
) -> tuple[Params, Found]:
    """Remove from x what changes a loss whose gradient is a column of G, to first order.

    With P the diagonal `scale`:
      not `whiten` (x is an update to add): x - P G l with G'x = 0 afterwards, or G'x <= 0 and
        l >= 0 where `one_sided`; the nearest such update in the metric P^-1.
      `whiten` (x is a gradient to descend along with steps -P x): x - G l with G'Px = 0, or
        G'Px >= 0 and l <= 0; the nearest in z = P^1/2 x.
    A second pass against the measured products removes the rounding of the first, so that
    |<column, result>| <= 1e-6 ||column|| ||x|| in the metric. It is idempotent, and does not change
    when the columns are replaced by others with the same span (or cone).

    Args:
      x: tree.
      columns: k >= 1 trees like x, of any float dtypes and lengths; zero columns are ignored.
      scale: P, tree of positive float32 factors, or None for the identity.
      whiten, one_sided: see above.
      keep: kappa >= 0 (inf: no cap) gives back the tangent part that agrees in sign with the sum
        of the first `fresh` columns, up to kappa times the length of the rest; None: none of it.
      fresh: how many of the first columns are of this step.
    Returns:
      The projected tree in the dtypes of x, bit for bit x where nothing acts; and `Found`.
    """
    inner, outer = (scale, None) if whiten else (None, scale)
    products_of = gram(columns, scale)
    sign = -1.0 if whiten else 1.0

    def measured(tree: Params) -> Array:
        return jnp.stack([dot(column, tree, inner) for column in columns])

    start = measured(x)
    if one_sided:
        multipliers, inverse = cone_multipliers(products_of, sign * start)
        binding = (multipliers > 0).sum()
        multipliers = sign * multipliers
    else:
        rows = orthonormal_rows(products_of)
        inverse = (rows[:, :, None] * rows[:, None, :]).sum(axis=0)
        multipliers = (inverse * start[None, :]).sum(axis=1)
        binding = jnp.abs(rows).max(axis=1).astype(bool).sum()
    moved = subtract(x, multipliers, columns, outer)
    rest = (inverse * measured(moved)[None, :]).sum(axis=1)
    moved = subtract(moved, jnp.where((multipliers != 0).any(), rest, 0.0), columns, outer)
    if keep is not None:
        back = _helpful(moved, products_of, start, fresh, keep, scale)
        moved = subtract(moved, -back, columns, outer)
    return moved, Found(products_of, binding.astype(jnp.float32))


def _helpful(
    rest: Params, products_of: Array, start: Array, fresh: int, kappa: float, scale: Params | None
) -> Array:
    """Multipliers of the tangent part that agrees with this step's gradient.

    In an orthonormal basis Q of the columns (oldest first, as they came), coordinate i of the
    tangent part a = Q'z is kept where a_i b_i > 0, b = Q'z_r; all of it is scaled by
    min(1, kappa ||z_rest|| / ||z_keep||).
    """
    k = products_of.shape[0]
    order = jnp.arange(k - 1, -1, -1)
    rows = orthonormal_rows(products_of[order][:, order])
    tangent = (rows * start[order][None, :]).sum(axis=1)
    current = products_of[:, :fresh].sum(axis=1)[order]
    helps = tangent * (rows * current[None, :]).sum(axis=1) > 0
    kept = jnp.where(helps, tangent, 0.0)
    length = jnp.sqrt((kept * kept).sum())
    limit = jnp.inf if kappa == math.inf else kappa * norm(rest, scale)
    cap = jnp.where(length > limit, safe_divide(jnp.asarray(limit), length), 1.0)
    return (rows * (cap * kept)[:, None]).sum(axis=0)[order]


def uncovered(products_of: Array, which: int, fresh: int) -> Array:
    """Share of a column's length outside the span of the columns from `fresh` on.

    Args:
      products_of: Gram matrix, float32 `[k, k]`, k > fresh.
      which: index of the column, < fresh.
      fresh: number of columns that are not part of the span.
    Returns:
      Scalar float32 in [0, 1]; 0 for a zero column.
    """
    rows = orthonormal_rows(products_of[fresh:, fresh:])
    inside = (rows * products_of[fresh:, which][None, :]).sum(axis=1)
    share = 1.0 - safe_divide((inside * inside).sum(), products_of[which, which])
    return jnp.where(products_of[which, which] > 0, jnp.sqrt(jnp.maximum(share, 0.0)), 0.0)


def remember(
    memory: tuple[Params, ...], current: Sequence[Params], products_of: Array, duplicate: float
) -> tuple[Params, ...]:
    """Store gradients at unit length: the newest first, the oldest leaves.

    Args:
      memory: earlier gradients; zeros are empty slots.
      current: those of this step.
      products_of: Gram matrix of `current` followed by `memory`.
      duplicate: a gradient whose cosine with a stored one exceeds this stays out, as does zero.
    Returns:
      The memory of the next step.
    """
    if not memory:
        return memory
    lengths = jnp.sqrt(jnp.diagonal(products_of))
    cosines = safe_divide(products_of, lengths[:, None] * lengths[None, :])
    for i, gradient in enumerate(current):
        enters = (cosines[i, len(current) :] <= duplicate).all() & (lengths[i] > 0)
        length = jnp.maximum(norm(gradient), jnp.finfo(jnp.float32).tiny)
        unit = jax.tree.map(lambda g, n=length: g.astype(jnp.float32) / n, gradient)
        shifted = (unit, *memory[:-1])
        memory = tuple(
            jax.tree.map(lambda a, b, e=enters: jnp.where(e, a.astype(b.dtype), b), new, old)
            for new, old in zip(shifted, memory, strict=True)
        )
    return memory
