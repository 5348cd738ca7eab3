"""Diagonal importance of parameters: mean squared gradients, streamed over a set in one pass."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import ScoreFn, TokenBatch

type Estimator = Literal["per_example", "squared_batch", "absolute_batch"]
"""What is averaged: the square of each example's gradient (the empirical Fisher information),
the square of each batch's gradient, or its absolute value."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """An importance before it is divided, so that those of several sets can be joined.

    Attributes:
      total: float32 tree like the parameters, the sum over examples or batches.
      count: float32 scalar, how many there were; rows without examples do not count.
    """

    total: Params
    count: Array


def importance(
    score: ScoreFn,
    params: Params,
    batches: Iterable[TokenBatch],
    *,
    estimator: Estimator = "squared_batch",
    frozen: Params | None = None,
) -> Params:
    """Importance of every parameter for a set of examples.

    The loss is the mean negative log-likelihood of an example's labelled targets ("per_example")
    or of a batch's. "squared_batch" depends on the batch size: the smaller the batches the larger
    and the nearer to "per_example", which it equals where each batch holds one example.

    Args:
      score: the model.
      params: of floating leaves.
      batches: packed rows, all of one shape; "per_example" needs one example a row.
      estimator: see `Estimator`.
      frozen: further leaves of the model, merged with `params` for `score`.
    Returns:
      float32 tree like `params`, >= 0: the mean over examples, or over batches. Rows without
      examples do not count.
    Raises:
      UserError: no batch, an unknown estimator, or rows of several examples for "per_example".
    Source: Foster et al. 2024, SSD (arXiv 2308.07707), eq. 3 and its published code.
    """
    return pooled(importance_sums(score, params, batches, estimator=estimator, frozen=frozen))


def importance_sums(
    score: ScoreFn,
    params: Params,
    batches: Iterable[TokenBatch],
    *,
    estimator: Estimator = "squared_batch",
    frozen: Params | None = None,
) -> Sums:
    """`importance` before the division; see there."""
    allowed = get_args(Estimator.__value__)
    if estimator not in allowed:
        raise UserError(
            f"importance: no estimator {estimator!r}. {did_you_mean(estimator, allowed)}"
        )
    add, seen = _compiled(score, estimator), False
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    sums = Sums(zeros, jnp.zeros((), jnp.float32))
    for batch in batches:
        if estimator == "per_example" and batch.example.shape[1] != 1:
            raise UserError(
                f"importance: per_example needs one example a row, these have room for "
                f"{batch.example.shape[1]}; pack with max_segments=1 or take squared_batch"
            )
        sums, seen = add(sums, params, frozen or {}, batch), True
    if not seen:
        raise UserError("importance: there is no batch to average over")
    return sums


def pooled(*sums: Sums) -> Params:
    """The importance for several sets together, from one pass over each."""

    def leaf(*totals: Array) -> Array:
        return sum(totals, jnp.zeros(())) / jnp.maximum(count, 1.0)

    count = sum((each.count for each in sums), jnp.zeros(()))
    return jax.tree.map(leaf, *(each.total for each in sums))


@functools.lru_cache(maxsize=8)
def _compiled(score: ScoreFn, estimator: str) -> Any:
    add = _add_examples(score) if estimator == "per_example" else _add_batch(score, estimator)
    return jax.jit(add, donate_argnums=0, compiler_options=compiler_options())


def _mean_nll(score: ScoreFn, params: Params, batch: TokenBatch) -> Array:
    scores = score(params, batch)
    count = scores.mask.sum()
    return -(scores.logp * scores.mask).sum() / jnp.maximum(count, 1.0)


def _add_batch(score: ScoreFn, estimator: str) -> Any:
    shaped = jnp.square if estimator == "squared_batch" else jnp.abs

    def add(sums: Sums, params: Params, rest: Params, batch: TokenBatch) -> Any:
        gradient = jax.grad(lambda p: _mean_nll(score, merge(rest, p), batch))(params)
        there = (batch.example >= 0).any().astype(jnp.float32)
        return _grown(sums, jax.tree.map(shaped, gradient), there)

    return add


def _add_examples(score: ScoreFn) -> Any:
    def add(sums: Sums, params: Params, rest: Params, batch: TokenBatch) -> Any:
        def one(carry: Sums, row: TokenBatch) -> tuple[Any, None]:
            single = jax.tree.map(lambda leaf: leaf[None], row)
            gradient = jax.grad(lambda p: _mean_nll(score, merge(rest, p), single))(params)
            there = (row.example >= 0).any().astype(jnp.float32)
            return _grown(carry, jax.tree.map(jnp.square, gradient), there), None

        # a loop, not vmap: one gradient of the size of the model at a time
        return jax.lax.scan(one, sums, batch)[0]

    return add


def _grown(sums: Sums, more: Params, there: Array) -> Sums:
    total = jax.tree.map(lambda a, b: a + there * b.astype(jnp.float32), sums.total, more)
    return Sums(total, sums.count + there)
