"""Any Flax NNX module as a (score function, parameters) pair that every objective understands."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.slots import slots_of
from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.engine.types import Head, Scores, TokenBatch, TokenStats
from jaxforget_kernels import linear_cross_entropy

COLUMNS = ("positions", "segments")


class Score(Protocol):
    """A `ScoreFn` that also gives statistics on request."""

    def __call__(self, params: Params, batch: TokenBatch, *, stats: bool = False) -> Scores:
        """Scores of a batch under `params`; with `stats` also `Scores.stats`."""
        ...


def from_module(
    module: nnx.Module,
    *,
    hidden: Callable[..., Array] | None = None,
    head: str | None = None,
) -> tuple[Score, Params]:
    """Split a module into a pure score function and its parameters.

    The function runs a copy in evaluation mode (`module.eval()`: no dropout, BatchNorm with its
    running averages). State that is not `nnx.Param`, such as those averages, becomes a constant.

    The module is called as `module(tokens)`, plus `positions=` and `segments=` (int32 `[B, L]`)
    where its signature names them. One that does not name `segments` cannot tell packed examples
    apart, so it is given rows of one example only, which padding (0) follows: it must be causal.

    Args:
      module: maps int32 tokens `[B, L]` to logits `[B, L, V]`.
      hidden: optional function (module, tokens, **columns) -> `[B, L, D]`, the states behind the
        last layer; columns as the function's own signature names them. Logits of the whole
        vocabulary are then never kept, and losses over whole distributions become possible.
      head: with `hidden`: path of the output projection among the parameters, for example
        "lm_head/kernel" (`[D, V]`, as `nnx.Linear` holds it, with its "bias" if it has one) or
        "embed/embedding" (`[V, D]`).
    Returns:
      (score, params): `score(params, batch, stats=False) -> Scores`, where `Scores.hidden` and
      `Scores.head` are filled only with `hidden`; params is a nested plain dictionary keyed by
      strings (list elements by their number).
    Raises:
      UserError: `hidden` without `head` or the reverse, an unknown head; and, when `score` is
        traced, packed rows for a module without segments, or logits of another shape.
    """
    if (hidden is None) != (head is None):
        raise UserError("from_module: hidden and head belong together; give both or neither")
    graph, state, rest = nnx.split(_evaluating(module), nnx.Param, ...)
    variables = {"/".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
    params = unflatten({name: leaf[...] for name, (_, leaf) in variables.items()})
    if head is not None and head not in variables:
        raise UserError(f"from_module: head {head!r}: {did_you_mean(head, variables)}")

    def rebuilt(params: Params) -> nnx.Module:
        values = flatten(params)
        leaves = [(path, leaf.replace(values[name])) for name, (path, leaf) in variables.items()]
        return nnx.merge(graph, nnx.from_flat_state(leaves), rest)

    function = hidden or (lambda model, tokens, **columns: model(tokens, **columns))
    accepted = _accepted(hidden or module.__call__)

    def score(params: Params, batch: TokenBatch, *, stats: bool = False) -> Scores:
        if "segments" not in accepted and batch.example.shape[1] != 1:
            raise UserError(
                f"{type(module).__name__} takes no segments, so rows must hold one example each; "
                f"this batch has {batch.example.shape[1]} a row"
            )
        if batch.until is not None:
            raise UserError(f"{type(module).__name__} cannot share questions between answers")
        columns = {name: getattr(batch, name) for name in accepted}
        out = function(rebuilt(params), batch.tokens, **columns)
        if out.ndim != 3 or out.shape[:2] != batch.tokens.shape:
            raise UserError(
                f"{type(module).__name__} gave an array of shape {out.shape} for tokens of shape "
                f"{batch.tokens.shape}; allowed: (rows, length, width)"
            )
        output = None if head is None else _head(flatten(params), head, out.shape[-1])
        return _scores(out, output, batch, stats)

    return score, params


def _evaluating(module: nnx.Module) -> nnx.Module:
    copy = nnx.clone(module)
    copy.eval()
    return copy


def _accepted(function: Callable[..., Any]) -> tuple[str, ...]:
    named = inspect.signature(function).parameters
    return tuple(name for name in COLUMNS if name in named)


def _head(flat: Mapping[str, Array], path: str, width: int) -> Head:
    *parents, leaf = path.split("/")
    kernel = leaf == "kernel"
    weight = flat[path].T if kernel else flat[path]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise UserError(
            f"head {path!r} has shape {flat[path].shape}, which does not fit hidden states of "
            f"width {width}"
        )
    return Head(weight, flat.get("/".join((*parents, "bias"))) if kernel else None)


def _scores(out: Array, head: Head | None, batch: TokenBatch, stats: bool) -> Scores:
    targets, mask, segments = batch.targets, batch.mask, batch.segments
    slots = slots_of(batch)
    if slots is not None:
        targets, mask, segments = (
            jnp.take_along_axis(column, slots, axis=1) for column in (targets, mask, segments)
        )
        segments = jnp.where(mask != 0, segments, 0)
        out = jnp.take_along_axis(out, slots[:, :, None], axis=1)
    if head is None:
        logp, about = _from_logits(out, targets)
    else:
        weight = head.weight.astype(out.dtype)
        answer = linear_cross_entropy(out, weight, targets, bias=head.bias, stats=stats)
        logp, about = answer if isinstance(answer, tuple) else (answer, ())
    return Scores(
        logp=jnp.where(mask != 0, logp, 0.0),
        mask=mask,
        segments=segments,
        example=batch.example,
        hidden=None if head is None else out,
        head=head,
        stats=TokenStats(*about) if stats else None,
        totals=batch.totals,
    )


def _from_logits(logits: Array, targets: Array) -> tuple[Array, tuple[Array, ...]]:
    table = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    logp = jnp.take_along_axis(table, targets[..., None], axis=-1)[..., 0]
    fixed = jax.lax.stop_gradient(table)
    p = jnp.exp(fixed)
    hit = (jnp.argmax(fixed, axis=-1) == targets).astype(jnp.float32)
    return logp, (hit, _expectation(p, fixed), _expectation(p, jnp.square(fixed)))


def _expectation(p: Array, values: Array) -> Array:
    # a forbidden token (logit -inf) has p = 0 and adds nothing
    return jnp.sum(jnp.where(p > 0, p * values, 0.0), axis=-1)
