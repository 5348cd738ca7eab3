"""How much each parameter matters to a data set, one example at a time: for EWC and MAS."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.edits.importance import importance
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import merge
from jaxforget.engine.types import ScoreFn, TokenBatch
from jaxforget.objectives.distribution import side
from jaxforget_kernels import linear_cross_entropy, map_logits

type Tree = Any

type FisherKind = Literal["empirical", "true", "squared_batch"]
"""Which diagonal Fisher information: E[(d log p(y|x) / d theta)^2] over examples with y from the
data or drawn from the model, or the square of each batch's mean gradient, which is smaller by about
the examples in a batch."""


def diagonal(
    value: Callable[..., Array],
    params: Tree,
    batches: Iterable[Any],
    *,
    square: bool = True,
    limit: int | None = None,
    extra: tuple[Any, ...] = (),
    counted: Callable[[Any], Array] | None = None,
) -> Tree:
    """Mean over examples of (d value / d theta)^2, or of its magnitude; for any model.

    With the log-likelihood as value it is the empirical Fisher information that `ewc` takes, with
    the squared norm of the outputs and `square=False` what `mas` takes.

    Args:
      value: (params, example, *extra) -> scalar. Compiled once as long as it is the same object.
      params: pytree of float arrays.
      batches: pytrees whose leaves have a leading axis of examples, all of one shape.
      square: squares, or magnitudes.
      limit: examples to read, >= 1, the first ones; None: all.
      extra: further arguments of `value`.
      counted: example -> does it count (bool scalar)? None: all do.
    Returns:
      float32 tree like `params`.
    Raises:
      UserError: no example.
    """
    if limit is not None and limit < 1:
        raise UserError(f"diagonal: limit must be at least 1 example, got {limit}")
    add = _adder(value, square, counted)
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    count = jnp.zeros((), jnp.float32)
    most = jnp.asarray(jnp.inf if limit is None else limit, jnp.float32)
    for batch in batches:
        sums, count = add((sums, count), params, batch, most, extra)
        if limit is not None and float(count) >= limit:
            break
    if not float(count):
        raise UserError("diagonal: there is no example to average over")
    return jax.tree.map(lambda leaf: leaf / count, sums)


@functools.lru_cache(maxsize=8)
def _adder(value: Callable[..., Array], square: bool, counted: Any) -> Any:
    shaped = jnp.square if square else jnp.abs

    def add(carry: Any, params: Tree, batch: Any, most: Array, extra: tuple[Any, ...]) -> Any:
        def one(carry: Any, example: Any) -> tuple[Any, None]:
            sums, count = carry
            gradient = jax.grad(value)(params, example, *extra)
            there = jnp.asarray(True) if counted is None else counted(example)
            there = there & (count < most)

            def grown(total: Array, g: Array) -> Array:
                return total + jnp.where(there, shaped(g.astype(jnp.float32)), 0.0)

            return (jax.tree.map(grown, sums, gradient), count + there), None

        # a loop, not vmap: one gradient of the size of the model at a time
        return jax.lax.scan(one, carry, batch)[0]

    return jax.jit(add, donate_argnums=0, compiler_options=compiler_options())


def fisher(
    score: ScoreFn,
    params: Tree,
    batches: Iterable[TokenBatch],
    *,
    kind: FisherKind = "empirical",
    frozen: Tree | None = None,
    key: Array | None = None,
    limit: int | None = None,
) -> Tree:
    """Diagonal Fisher information of a model on packed examples.

    An example's log p(y|x) is the sum over its labelled targets. "true" draws every target from
    the model's distribution behind the data's own prefix, by the key and the example's number.

    Args:
      score: the model; "true" needs its hidden states and head.
      params: nested dictionary of float arrays.
      batches: one example a row; any rows for "squared_batch", whose loss is a batch's mean
        negative log-likelihood per target.
      kind: see `FisherKind`.
      frozen: further leaves of the model, merged with `params` for `score`.
      key: for "true".
      limit: examples to read, the first ones; None: all. For "squared_batch", whole batches until
        they hold as many.
    Returns:
      float32 tree like `params`, >= 0.
    Raises:
      UserError: an unknown kind, rows of several examples, no key for "true", no example.
    Source: Kunstner et al. 2019 (arXiv 1905.12558) on the difference of the kinds.
    """
    check_kind("fisher", kind)
    if kind == "squared_batch":
        some = batches if limit is None else _first(batches, limit)
        return importance(score, params, some, estimator=kind, frozen=frozen)
    if kind == "true":
        if key is None:
            raise UserError("fisher: kind 'true' draws targets and needs a key")
        extra = (frozen or {}, key)
        value = _sampled_logp(score)
    else:
        extra, value = (frozen or {},), _data_logp(score)
    return diagonal(
        value, params, _single(batches, "fisher"), limit=limit, extra=extra, counted=_there
    )


def output_sensitivity(
    score: ScoreFn,
    params: Tree,
    batches: Iterable[TokenBatch],
    *,
    frozen: Tree | None = None,
    limit: int | None = None,
) -> Tree:
    """Mean over examples of |d ||logits||^2 / d theta|: the importance of `mas`.

    An example's ||logits||^2 is the mean over its labelled targets of the sum over the vocabulary.

    Args:
      score: the model, with hidden states and head.
      params, batches, frozen, limit: as `fisher`.
    Raises:
      UserError: rows of several examples, no example, a model without hidden states.
    """
    return diagonal(
        _squared_logits(score),
        params,
        _single(batches, "output_sensitivity"),
        square=False,
        limit=limit,
        extra=(frozen or {},),
        counted=_there,
    )


def check_kind(who: str, kind: str) -> None:
    """Refuse an unknown kind of Fisher information."""
    allowed = get_args(FisherKind.__value__)
    if kind not in allowed:
        raise UserError(f"{who}: no Fisher information {kind!r}. {did_you_mean(kind, allowed)}")


def _single(batches: Iterable[TokenBatch], who: str) -> Iterator[TokenBatch]:
    for batch in batches:
        if batch.example.shape[1] != 1:
            raise UserError(
                f"{who}: needs one example a row, these have room for {batch.example.shape[1]}; "
                "pack with max_segments=1"
            )
        yield batch


def _first(batches: Iterable[TokenBatch], limit: int) -> Iterator[TokenBatch]:
    seen = 0
    for batch in batches:
        if seen >= limit:
            return
        seen += int((batch.example >= 0).sum())
        yield batch


def _there(row: TokenBatch) -> Array:
    return (row.example >= 0).any()


def _batch_of(row: TokenBatch) -> TokenBatch:
    return jax.tree.map(lambda leaf: leaf[None], row)


@functools.lru_cache(maxsize=8)
def _data_logp(score: ScoreFn) -> Callable[..., Array]:
    def value(params: Tree, row: TokenBatch, frozen: Tree) -> Array:
        scores = score(merge(frozen, params), _batch_of(row))
        return (scores.logp * scores.mask).sum()

    return value


@functools.lru_cache(maxsize=8)
def _sampled_logp(score: ScoreFn) -> Callable[..., Array]:
    def value(params: Tree, row: TokenBatch, frozen: Tree, key: Array) -> Array:
        scores = score(merge(frozen, params), _batch_of(row))
        hidden, weight, bias, softcap = side(scores)
        own = jax.random.fold_in(key, row.example[0])
        drawn = draw_targets(own, *jax.lax.stop_gradient((hidden, weight, bias)), softcap)
        logp = linear_cross_entropy(hidden, weight, drawn, bias=bias, softcap=softcap)
        return (logp * scores.mask).sum()  # pyright: ignore[reportOperatorIssue]

    return value


@functools.lru_cache(maxsize=8)
def _squared_logits(score: ScoreFn) -> Callable[..., Array]:
    def value(params: Tree, row: TokenBatch, frozen: Tree) -> Array:
        scores = score(merge(frozen, params), _batch_of(row))
        squares = map_logits(lambda z: jnp.square(z).sum(-1), [side(scores)])
        return (squares * scores.mask).sum() / jnp.maximum(scores.mask.sum(), 1.0)

    return value


def draw_targets(
    key: Array, hidden: Array, weight: Array, bias: Array | None, softcap: float | None
) -> Array:
    """One word a position from the model, by inverting its distribution function.

    Args:
      key: from `jax.random.key`.
      hidden: `[..., T, D]`.
      weight: `[V, D]`.
      bias: `[V]` or None.
      softcap: see `jaxforget.engine.types.Head`.
    Returns:
      int32 `[..., T]`.
    """
    uniform = jax.random.uniform(key, hidden.shape[:-1], jnp.float32)

    def word(logits: Array, u: Array) -> Array:
        below = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)
        # rounding may leave the last sum just below 1
        place = (below < u[:, None] * below[:, -1:]).sum(axis=-1)
        return place.astype(jnp.float32)

    found = map_logits(word, [(hidden, weight, bias, softcap)], [uniform])
    return jnp.minimum(found.astype(jnp.int32), weight.shape[0] - 1)
