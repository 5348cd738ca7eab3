"""Fisher forgetting: noise on every parameter, the larger the less it matters to what is kept.

Noise is a pure function of the key and a leaf's path: the order of the tree, its other leaves and
the mesh do not change it.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.terms import number
from jaxforget.edits.checks import STACKED, check_alike, chosen
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, matches, unflatten

FLOOR, CEILING = 1e-8, 1e3
"""Golatkar's form: added to the importance; largest inverse importance."""

ROWS = "(^|/)(embed|head)/"
"""Paths of matrices stored [out, in], one row a token; all others are [in, out]."""


def fisher_forgetting(
    params: Params,
    importance_retain: Params,
    *,
    key: Array,
    alpha: float = 1e-6,
    limit: float = 1e-3,
    wide: str | None = None,
    wide_factor: float = 10.0,
) -> Params:
    """theta + n min(sqrt(alpha / F), limit) with n standard normal, entry by entry.

    Args:
      params: floating leaves.
      importance_retain: F, like `params`, >= 0: the diagonal Fisher information of the retain set
        (`importance` with estimator "per_example"). Where it is 0 the deviation is `limit`.
      key: of `jax.random.key`.
      alpha: >= 0; 0 changes nothing.
      limit: largest standard deviation before `wide_factor`, >= 0, finite.
      wide: regular expression on paths of leaves with more noise, the output head: "^head/";
        None: no leaf.
      wide_factor: >= 0, multiplies the deviation of these leaves.
    Returns:
      Parameters of the same dtypes; noise below a narrow dtype's resolution is rounded away.
    Raises:
      UserError: trees that differ, a value out of range, `wide` matches no leaf.
    Source: Golatkar et al. 2020 (arXiv 1911.04933), as simplified in the code published
      with Foster et al. 2024 (arXiv 2308.07707).
    """
    who = "fisher_forgetting"
    number(who, "alpha", alpha)
    number(who, "limit", limit)
    more = _factors(who, params, wide, wide_factor)

    def deviation(path: str, fisher: Array) -> Array:
        return jnp.minimum(jnp.sqrt(alpha / fisher), limit) * more(path)

    if alpha == 0:
        check_alike(who, "importance_retain", importance_retain, params)
        return params
    return _noisy(who, params, importance_retain, key, deviation)


def golatkar_forgetting(
    params: Params,
    importance_retain: Params,
    *,
    key: Array,
    alpha: float = 1e-6,
    wide: str | None = None,
    wide_factor: float = 10.0,
    rows: str = ROWS,
    stacked: str = STACKED,
) -> Params:
    """theta + n sqrt(v), v = alpha min(1 / (F + 1e-8), 1e3) averaged over each unit's inputs.

    The average is over the input axis, so that all weights into one output unit share a variance:
    axis -2 of matrices stored [in, out] (and of kernels [.., in, out]), axis -1 of those stored
    [out, in], where it means one variance a token. Vectors are not averaged.

    Args:
      params, importance_retain, key, alpha: see `fisher_forgetting`.
      wide: see `fisher_forgetting`; vectors (norms, biases) are always wide.
      wide_factor: >= 0, multiplies the *variance* of wide leaves.
      rows: regular expression on paths of matrices stored [out, in].
      stacked: regular expression on paths of leaves with a leading axis of layers; each layer's
        tensor is treated on its own.
    Returns:
      Parameters of the same dtypes.
    Raises:
      UserError: as `fisher_forgetting`.
    Source: Golatkar et al. 2020 (arXiv 1911.04933) and its published code. There the Fisher
      information is an expectation over all labels, and the row of a forgotten class is replaced
      by noise of variance 1e-4; a language model has no such row.
    """
    who = "golatkar_forgetting"
    number(who, "alpha", alpha)
    more = _factors(who, params, wide, wide_factor)
    in_rows, on_layers = matches(rows), matches(stacked)

    def deviation(path: str, fisher: Array) -> Array:
        variance = alpha * jnp.minimum(1.0 / (fisher + FLOOR), CEILING)
        if fisher.ndim - on_layers(path) < 2:
            return jnp.sqrt(variance * wide_factor)
        axis = -1 if in_rows(path) else -2
        return jnp.sqrt(variance.mean(axis, keepdims=True) * more(path))

    return _noisy(who, params, importance_retain, key, deviation)


def _factors(who: str, params: Params, wide: str | None, factor: float) -> Callable[[str], float]:
    number(who, "wide_factor", factor)
    is_wide = chosen(who, "wide", wide, params)
    return lambda path: factor if is_wide(path) else 1.0


def _noisy(
    who: str,
    params: Params,
    importance: Params,
    key: Array,
    deviation: Callable[[str, Array], Array],
) -> Params:
    check_alike(who, "importance_retain", importance, params)
    if not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key) or jnp.ndim(key):
        raise UserError(f"{who}: key must be one key of jax.random.key, got {key!r}")
    weights, edited = flatten(params), {}
    for path, fisher in flatten(importance).items():
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        edited[path] = _added(own, weights[path], deviation(path, fisher.astype(jnp.float32)))
    return unflatten(edited)


@jax.jit
def _added(key: Array, weight: Array, deviation: Array) -> Array:
    noise = jax.random.normal(key, weight.shape, jnp.float32)
    return (weight.astype(jnp.float32) + noise * deviation).astype(weight.dtype)
