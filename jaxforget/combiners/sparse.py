"""Sparse updates: only the largest, or all but the largest, entries of an update are applied."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.finishers import STILL, Finisher
from jaxforget.combiners.terms import number, whole
from jaxforget.combiners.vectors import safe_divide
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Metrics
from jaxforget_kernels import threshold_mask

type Per = Literal["all", "leaf"]


def keep_top_k(share: float, *, per: Per = "all") -> Finisher:
    """Apply only the entries of each update that are largest in magnitude.

    Args:
      share: of entries applied, in [0, 1]; 1 is the identity bit for bit, 0 stops training.
      per: rank over "all" entries together, or within each "leaf".
    Returns:
      A `Finisher` without state; metric `kept_share`. Entries not applied stay bit-equal. All
      entries that tie with the last one are applied.
    Raises:
      UserError: share or per out of range.
    """
    number("keep_top_k", "share", share, 0.0, 1.0)
    _check_per("keep_top_k", per)

    def finish(delta: Params, state: Any, params: Params) -> tuple[Params, Any, Metrics]:
        if share == 1:
            return delta, state, {"kept_share": jnp.ones((), jnp.float32)}
        mask = largest(delta, share, per=per)
        kept = jax.tree.map(lambda d, m: jnp.where(m, d, STILL), delta, mask)
        return kept, state, {"kept_share": _share(mask)}

    return Finisher(init=lambda params: (), finish=finish)


def sign_top_k(share: float, *, per: Per = "all") -> Finisher:
    """Sparse ternary updates: the largest entries, each replaced by its sign times their mean.

    Args:
      share: of entries applied, in (0, 1].
      per: rank and mean over "all" entries together, or within each "leaf".
    Returns:
      A `Finisher` without state; metric `kept_share`.
    Raises:
      UserError: share or per out of range.
    Source: Sattler et al. 2019 (arXiv 1903.02891), algorithm 1, without its error feedback.
    """
    if number("sign_top_k", "share", share, 0.0, 1.0) == 0:
        raise UserError("sign_top_k: share must be above 0")
    _check_per("sign_top_k", per)

    def finish(delta: Params, state: Any, params: Params) -> tuple[Params, Any, Metrics]:
        mask = largest(delta, share, per=per)

        def sums(d: Array, m: Array) -> Array:
            size = jnp.where(m, jnp.abs(d.astype(jnp.float32)), 0.0).sum()
            return jnp.stack([size, m.sum(dtype=jnp.float32)])

        each = jax.tree.map(sums, delta, mask)
        if per == "all":
            total = sum(jax.tree.leaves(each), jnp.zeros(2, jnp.float32))
            each = jax.tree.map(lambda _: total, each)

        def leaf(d: Array, m: Array, s: Array) -> Array:
            mean = safe_divide(s[0], s[1]).astype(d.dtype)
            return jnp.where(m, jnp.sign(d) * mean, STILL)

        return jax.tree.map(leaf, delta, mask, each), state, {"kept_share": _share(mask)}

    return Finisher(init=lambda params: (), finish=finish)


def ignore_top_k(share: float = 0.08, *, per: Per = "all") -> Finisher:
    """Drop the entries of each update that are largest in magnitude: the opposite of trimming.

    Args:
      share: of entries dropped, in [0, 1]; 0 is the identity bit for bit.
      per: rank over "all" entries together, or within each "leaf".
    Returns:
      A `Finisher` without state; metric `kept_share`. Dropped entries stay bit-equal. All entries
      that tie with the last one are dropped.
    Raises:
      UserError: share or per out of range.
    Source: Sun et al. 2025 (arXiv 2504.09522), where 8 % is dropped.
    """
    number("ignore_top_k", "share", share, 0.0, 1.0)
    _check_per("ignore_top_k", per)

    def finish(delta: Params, state: Any, params: Params) -> tuple[Params, Any, Metrics]:
        if share == 0:
            return delta, state, {"kept_share": jnp.ones((), jnp.float32)}
        mask = largest(delta, share, per=per)
        kept = jax.tree.map(lambda d, m: jnp.where(m, STILL, d), delta, mask)
        return kept, state, {"kept_share": 1.0 - _share(mask)}

    return Finisher(init=lambda params: (), finish=finish)


class MultiStepState(NamedTuple):
    """What `multi_step_sparse` carries.

    Attributes:
      snapshot: parameters after the last pruning.
      steps: int32, steps since then.
    """

    snapshot: Params
    steps: Array


def multi_step_sparse(share: float = 0.2, period: int = 500, *, per: Per = "leaf") -> Finisher:
    """Every `period` steps, undo all but the largest of what those steps changed.

    With w0 the parameters after the last pruning, w <- w0 + mask(|w - w0|) (w - w0). Between two
    prunings the update passes bit for bit. The optimizer's moments are left alone.

    Args:
      share: of accumulated changes kept, in [0, 1]; 1 is the identity bit for bit, 0 returns to w0.
      period: steps between prunings, >= 1.
      per: rank over "all" entries together, or within each "leaf".
    Returns:
      A `Finisher`; metric `kept_share`, of the last pruning when one happened, else 1. State: one
      copy of the parameters.
    Raises:
      UserError: an argument out of range.
    Source: Sun et al. 2024 (arXiv 2410.21750); the share and the ranking within each tensor are
      those of the trimming it follows (arXiv 2306.01708).
    """
    number("multi_step_sparse", "share", share, 0.0, 1.0)
    whole("multi_step_sparse", "period", period, 1)
    _check_per("multi_step_sparse", per)

    def init(params: Params) -> MultiStepState:
        # a copy: the state's buffers are donated together
        return MultiStepState(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def prune(delta: Params, snapshot: Params, params: Params) -> tuple[Params, Params, Array]:
        change = jax.tree.map(
            lambda p, d, s: (p + d).astype(jnp.float32) - s.astype(jnp.float32),
            params,
            delta,
            snapshot,
        )
        mask = largest(change, share, per=per)
        pruned = jax.tree.map(
            lambda m, d, s, p: jnp.where(m, d, (s - p).astype(d.dtype)),
            mask,
            delta,
            snapshot,
            params,
        )
        after = jax.tree.map(lambda p, d: (p + d).astype(p.dtype), params, pruned)
        return pruned, after, _share(mask)

    def finish(
        delta: Params, state: MultiStepState, params: Params
    ) -> tuple[Params, MultiStepState, Metrics]:
        steps = state.steps + 1
        due = steps >= period
        one = jnp.ones((), jnp.float32)
        if share < 1:
            delta, snapshot, kept = jax.lax.cond(
                due,
                lambda: prune(delta, state.snapshot, params),
                lambda: (delta, state.snapshot, one),
            )
        else:
            snapshot, kept = state.snapshot, one
        return delta, MultiStepState(snapshot, jnp.where(due, 0, steps)), {"kept_share": kept}

    return Finisher(init=init, finish=finish)


def largest(tree: Params, share: float, *, per: Per = "all") -> Params:
    """Mark the entries that are largest in magnitude.

    Args:
      tree: of float arrays, e.g. an update, or a gradient for a saliency mask.
      share: of entries marked, in [0, 1]; round(share * size) of them.
      per: rank over "all" entries together, or within each "leaf".
    Returns:
      Tree of bool arrays. Entries that tie with the last one are all marked.
    """
    leaves, structure = jax.tree.flatten(tree)
    if per == "all":
        marked = mark_largest(leaves, share)
    else:
        marked = [mark_largest([leaf], share)[0] for leaf in leaves]
    return jax.tree.unflatten(structure, marked)


def mark_largest(leaves: Sequence[Array], share: float) -> list[Array]:
    """Mark the round(share * total size) entries of largest magnitude over some arrays together."""
    if any(leaf.size >= 2**31 for leaf in leaves):
        raise UserError("top-k: a leaf has 2^31 entries or more; rank per leaf in smaller leaves")
    return threshold_mask(leaves, round(share * sum(leaf.size for leaf in leaves)))


def _share(mask: Params) -> Array:
    leaves = jax.tree.leaves(mask)
    marked = sum((leaf.sum(dtype=jnp.int32).astype(jnp.float32) for leaf in leaves), jnp.zeros(()))
    return marked / sum(leaf.size for leaf in leaves)


def _check_per(who: str, per: str) -> None:
    if per not in ("all", "leaf"):
        raise UserError(f"{who}: per must be 'all' or 'leaf', got {per!r}")
