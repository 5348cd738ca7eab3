"""Scores of several roles from one forward pass over their rows together."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Batches, ScoreFn, Scores, TokenBatch
from jaxforget.objectives.beside import side_by_side

type Rows = dict[str, int]


def score_roles(
    score: ScoreFn,
    params: Params,
    batches: Batches,
    roles: Sequence[str],
    *,
    together: bool = True,
    **options: Any,
) -> dict[str, Scores]:
    """Score the batches of some roles.

    Args:
      score: the model.
      params: its parameters.
      batches: by role; rows, examples per row and `max_targets` may differ, the length only where
        scored apart, or where rows are as many and have tiles.
      roles: which of them.
      together: one forward pass over all rows, which keeps an accelerator busier and computes
        what layers share once; False: one pass each, whose arrays are smaller.
    Returns:
      By role, exactly as if each were scored alone (shapes, slots, `totals`).
    Raises:
      UserError: a role has no batch, or lengths differ; at trace time.
    """
    for role in roles:
        if role not in batches:
            raise UserError(f"the objective needs a {role!r} batch; there are: {sorted(batches)}")
    if not together or len(roles) < 2:
        return {role: score(params, batches[role], **options) for role in roles}
    some = {role: batches[role] for role in roles}
    rows = {role: batch.tokens.shape[0] for role, batch in some.items()}
    if len(set(rows.values())) == 1 and all(batch.tiles is not None for batch in some.values()):
        return side_by_side(score, params, some, **options)
    scores = score(params, _joint(some, rows), **options)
    head, arrays = scores.head, replace(scores, head=None, totals=None)
    apart = {role: _take(arrays, rows, role) for role in roles}
    return {role: replace(_as_alone(apart[role], some[role]), head=head) for role in roles}


def _joint(batches: Batches, rows: Rows) -> TokenBatch:
    """All rows as one batch, the roles' rows interleaved."""
    lengths = {role: batch.tokens.shape[1] for role, batch in batches.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"roles scored together must have rows of one length, got {lengths}; "
            "pack them to the same length or score them apart"
        )
    bounds = [batch.max_targets for batch in batches.values()]
    known = [bound for bound in bounds if bound is not None]
    examples = max(batch.example.shape[1] for batch in batches.values())
    alike = []
    for batch in batches.values():
        extra = examples - batch.example.shape[1]
        padded = jnp.pad(batch.example, ((0, 0), (0, extra)), constant_values=-1)
        bound = max(known) if len(known) == len(bounds) else None
        alike.append(replace(batch, example=padded, totals=None, max_targets=bound))
    return jax.tree.map(lambda *leaves: _interleave(leaves, rows), *alike)


def _interleave(leaves: Sequence[Array], rows: Rows) -> Array:
    """Rows of several arrays as one axis, such that a shard of it holds a shard of each.

    Every array is cut into g equal groups, g the greatest common divisor of the row counts; group
    i of the result is group i of each. No device then needs another's rows.
    """
    joined = jnp.concatenate([_grouped(leaf, rows) for leaf in leaves], axis=1)
    return joined.reshape(-1, *joined.shape[2:])


def _grouped(leaf: Array, rows: Rows) -> Array:
    """`[n, ...]` -> `[groups, n / groups, ...]`."""
    groups = math.gcd(*rows.values())
    return leaf.reshape(groups, leaf.shape[0] // groups, *leaf.shape[1:])


def _take(scores: Scores, rows: Rows, role: str) -> Scores:
    """The rows of one role out of interleaved ones."""
    groups = math.gcd(*rows.values())
    width = rows[role] // groups
    names = list(rows)
    start = sum(rows[name] for name in names[: names.index(role)]) // groups

    def take(leaf: Array) -> Array:
        leaf = _grouped(leaf, rows)[:, start : start + width]
        return leaf.reshape(-1, *leaf.shape[2:])

    return jax.tree.map(take, scores)


def _as_alone(scores: Scores, batch: TokenBatch) -> Scores:
    """Slots, examples and totals as the role's own batch asks for."""
    example = scores.example[:, : batch.example.shape[1]]
    scores = replace(scores, example=example)
    bound = batch.max_targets
    if bound is not None and scores.logp.shape[1] != bound:
        scores = _compact(scores, bound)
    return replace(scores, totals=batch.totals)


def _compact(scores: Scores, bound: int) -> Scores:
    """The first `bound` labelled slots of every row, in order, then others."""
    slots = jnp.argsort(scores.mask == 0, axis=1, stable=True)[:, :bound]

    def pick(leaf: Array) -> Array:
        index = slots.reshape(*slots.shape, *(1,) * (leaf.ndim - 2))
        return jnp.take_along_axis(leaf, index, axis=1)

    example, head, totals = scores.example, scores.head, scores.totals
    picked = jax.tree.map(pick, replace(scores, example=None, head=None, totals=None))
    segments = jnp.where(picked.mask != 0, picked.segments, 0)
    return replace(picked, segments=segments, example=example, head=head, totals=totals)
