"""Influence of a forget set through an inverse Fisher matrix of retained examples."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.terms import number
from jaxforget.combiners.vectors import dot
from jaxforget.edits.checks import check_alike
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import ScoreFn, TokenBatch

type Recursion = Literal["published", "exact"]
"""How `woodfisher` applies the inverse Fisher matrix."""


def example_gradients(
    score: ScoreFn,
    params: Params,
    batches: Iterable[TokenBatch],
    *,
    frozen: Params | None = None,
) -> Iterator[Params]:
    """Gradient of each example's mean negative log-likelihood, one at a time.

    Args:
      score: the model.
      params: floating leaves.
      batches: packed rows, all of one shape, with one example a row.
      frozen: further leaves of the model, merged with `params` for `score`.
    Yields:
      A float32 tree like `params` for each row; zeros for a row without example.
    Raises:
      UserError: rows of several examples.
    """

    of_row = _compiled(score)
    for batch in batches:
        rows, room = batch.example.shape
        if room != 1:
            raise UserError(
                f"example_gradients: needs one example a row, these have room for {room}; "
                f"pack with max_segments=1"
            )
        for row in range(rows):
            yield of_row(params, frozen or {}, batch, jnp.int32(row))


@functools.lru_cache(maxsize=8)
def _compiled(score: ScoreFn) -> Any:
    def gradient(params: Params, rest: Params, batch: TokenBatch, row: Array) -> Params:
        single = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1), batch)

        def nll(p: Params) -> Array:
            scores = score(merge(rest, p), single)
            return -(scores.logp * scores.mask).sum() / jnp.maximum(scores.mask.sum(), 1.0)

        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), jax.grad(nll)(params))

    return jax.jit(gradient, compiler_options=compiler_options())


def woodfisher(
    params: Params,
    gradient_forget: Params,
    gradient_retain: Params,
    gradients: Iterable[Params],
    *,
    counts: tuple[int, int],
    damping: float = 1000.0,
    scale: float,
    recursion: Recursion = "published",
) -> Params:
    """theta + scale H^-1 v: the forget set's first-order influence taken back.

    v = (n_f / n) (mean g_f - mean g_r) with n = n_f + n_r. "exact" applies the inverse of
    H = I + sum_j g_j g_j^T / damping over all gradients given. "published" is one pass with two
    vectors: o = g_1, k = v, then for each later g: t = <o, g>, k -= <k, g> / (damping + t) o,
    o -= t / (damping + t) o. There k moves along g_1 alone; the two agree, over the gradients after
    the first, when all of them are equal.

    Args:
      params: floating leaves.
      gradient_forget, gradient_retain: means over the two sets, like `params`.
      gradients: of single retained examples, like `params`; see `example_gradients`. Those of
        zero, at the front too, change nothing. "exact" holds all of them in memory.
      counts: (n_f, n_r), what the two means are over; both positive.
      damping: > 0, finite; the larger the nearer is H to the identity.
      scale: any finite number; the published runs tune it for each task.
      recursion: see above.
    Returns:
      Parameters of the same dtypes.
    Raises:
      UserError: trees that differ, no gradient, a value out of range.
    Source: Izzo et al. 2021 (arXiv 2002.10077) for the influence; Singh and Alistarh 2020,
      WoodFisher (arXiv 2004.14340); the recursion is that of the code published with
      Fan et al. 2023 (arXiv 2310.12508), without its stop after damping + 2 gradients.
    """
    who = "woodfisher"
    allowed = get_args(Recursion.__value__)
    if recursion not in allowed:
        raise UserError(f"{who}: no recursion {recursion!r}. {did_you_mean(recursion, allowed)}")
    number(who, "scale", scale, None)
    if number(who, "damping", damping) == 0:
        raise UserError(f"{who}: damping must be above 0")
    if len(counts) != 2 or min(counts) <= 0:
        raise UserError(f"{who}: counts must be two positive numbers, got {counts!r}")
    check_alike(who, "gradient_forget", gradient_forget, params)
    check_alike(who, "gradient_retain", gradient_retain, params)
    share = counts[0] / (counts[0] + counts[1])
    start = jax.tree.map(
        lambda f, r: share * (_float32(f) - _float32(r)), gradient_forget, gradient_retain
    )
    checked = _checked(gradients, params)
    along = _by_gram if recursion == "exact" else _by_recursion
    k = along(start, checked, damping)
    return jax.tree.map(lambda p, u: (_float32(p) + scale * u).astype(p.dtype), params, k)


def _checked(gradients: Iterable[Params], params: Params) -> Iterator[Params]:
    index = -1
    for index, gradient in enumerate(gradients):
        check_alike("woodfisher", f"gradient {index}", gradient, params)
        yield jax.tree.map(_float32, gradient)
    if index < 0:
        raise UserError("woodfisher: there is no gradient of a retained example")


def _by_recursion(v: Params, gradients: Iterable[Params], damping: float) -> Params:
    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: tuple[Params, Params], g: Params) -> tuple[Params, Params]:
        k, o = carry
        first = dot(o, o) == 0
        t = dot(o, g)
        along, shrink = dot(k, g) / (damping + t), 1 - t / (damping + t)
        k = jax.tree.map(lambda k, o: k - along * o, k, o)
        return k, jax.tree.map(lambda o, g: jnp.where(first, g, shrink * o), o, g)

    carry = v, jax.tree.map(_zeros, v)
    for gradient in gradients:
        carry = step(carry, gradient)
    return carry[0]


def _by_gram(v: Params, gradients: Iterable[Params], damping: float) -> Params:
    """v - G^T (damping I + G G^T)^-1 G v, with G the gradients as rows."""
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)

    def inner(a: Array, b: Array) -> Array:
        axes = tuple(range(1, a.ndim)), tuple(range(b.ndim - a.ndim + 1, b.ndim))
        return jnp.tensordot(a, b, axes, precision="highest")

    gram = sum(jax.tree.leaves(jax.tree.map(inner, rows, rows)), jnp.zeros(()))
    against = sum(jax.tree.leaves(jax.tree.map(inner, rows, v)), jnp.zeros(()))
    gram = gram + damping * jnp.eye(gram.shape[0])
    weights = jax.scipy.linalg.solve(gram, against, assume_a="pos")
    return jax.tree.map(
        lambda v, g: v - jnp.tensordot(weights, g, 1, precision="highest"), v, cast(Params, rows)
    )


def _float32(leaf: Array) -> Array:
    return leaf.astype(jnp.float32)


def _zeros(leaf: Array) -> Array:
    return jnp.zeros_like(leaf, jnp.float32)
