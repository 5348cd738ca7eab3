"""Parameter trees as vectors: inner products, norms and linear combinations over all leaves.

Every reduction is an elementwise product summed in float32 (never a matrix product, which
accelerators may round to bfloat16 or TF32), so it is the same under any sharding up to rounding.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.tree import Params


def dot(a: Params, b: Params, scale: Params | None = None) -> Array:
    """<a, b>, or <a, scale * b>, over all leaves; float32 scalar, 0 for trees without leaves.

    Args:
      a, b: trees of the same structure and shapes, any float dtypes.
      scale: tree of non-negative factors, a diagonal metric; None: the identity.
    """

    def leaf(x: Array, y: Array, *s: Array) -> Array:
        product = x.astype(jnp.float32) * y.astype(jnp.float32)
        return (product * s[0] if s else product).sum()

    parts = jax.tree.leaves(jax.tree.map(leaf, a, b, *([] if scale is None else [scale])))
    return reduce(jnp.add, parts, jnp.zeros((), jnp.float32))


def norm(a: Params, scale: Params | None = None) -> Array:
    """Square root of `dot(a, a, scale)`."""
    return jnp.sqrt(dot(a, a, scale))


def cosine(a: Params, b: Params, scale: Params | None = None) -> Array:
    """Cosine of the angle between two trees in the given metric; 0 where one of them is zero."""
    return safe_divide(dot(a, b, scale), norm(a, scale) * norm(b, scale))


def gram(vectors: Sequence[Params], scale: Params | None = None) -> Array:
    """All inner products of k trees, float32 `[k, k]`, symmetric."""
    k = len(vectors)
    upper = {(i, j): dot(vectors[i], vectors[j], scale) for i in range(k) for j in range(i, k)}
    rows = [[upper[min(i, j), max(i, j)] for j in range(k)] for i in range(k)]
    return jnp.stack([jnp.stack(row) for row in rows]) if k else jnp.zeros((0, 0), jnp.float32)


def combination(coefficients: Array | Sequence[Any], vectors: Sequence[Params]) -> Params:
    """sum_i c_i v_i, computed in float32, in the dtypes of the first tree.

    Args:
      coefficients: float32 `[k]`, or k scalars.
      vectors: k >= 1 trees of the same structure and shapes.
    """

    def leaf(first: Array, *others: Array) -> Array:
        parts = [coefficients[i] * x.astype(jnp.float32) for i, x in enumerate((first, *others))]
        return reduce(jnp.add, parts).astype(first.dtype)

    return jax.tree.map(leaf, *vectors)


def subtract(
    a: Params, coefficients: Array, vectors: Sequence[Params], scale: Any = None
) -> Params:
    """a - scale * sum_i c_i v_i, computed in float32, in the dtypes of `a`.

    Args:
      a: tree.
      coefficients: float32 `[k]`; where all are 0 the result is `a` bit for bit.
      vectors: k trees like `a`, of any float dtypes.
      scale: tree of factors like `a`, or None for 1.
    """
    if not vectors:
        return a
    any_change = (coefficients != 0).any()
    factors = [] if scale is None else [scale]

    def leaf(x: Array, *others: Array) -> Array:
        columns = others[: len(vectors)]
        parts = [coefficients[i] * v.astype(jnp.float32) for i, v in enumerate(columns)]
        total = reduce(jnp.add, parts)
        if factors:
            total = total * others[-1]
        return jnp.where(any_change, (x.astype(jnp.float32) - total).astype(x.dtype), x)

    return jax.tree.map(leaf, a, *vectors, *factors)


def zeros(tree: Params, dtype: Any = None) -> Params:
    """Zeros shaped like a tree, in its dtypes unless one is given."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, dtype or x.dtype), tree)


def safe_divide(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))
