"""Roles whose rows lie one behind the other in rows of their joint length."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.slots import slots_of
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Batches, ScoreFn, Scores, Tiles, TokenBatch


def side_by_side(
    score: ScoreFn, params: Params, batches: Batches, **options: Any
) -> dict[str, Scores]:
    """Score batches of as many rows, with tiles, in one pass; see `score_roles`.

    No row moves to another device: row b of the pass is row b of every role.
    """
    every = list(batches.values())
    slots = [_slots(batch) for batch in every]
    scores = score(params, _joint(every, slots), **options)
    arrays = replace(scores, example=None, head=None, totals=None)
    found, segments = {}, 0
    bounds = pairwise(accumulate((each.shape[1] for each in slots), initial=0))
    for (role, batch), (begin, end) in zip(batches.items(), bounds, strict=True):
        own: Scores = jax.tree.map(lambda leaf, a=begin, b=end: leaf[:, a:b], arrays)
        numbers = jnp.where(own.segments > 0, own.segments - segments, 0)
        about = {"example": batch.example, "head": scores.head, "totals": batch.totals}
        found[role] = replace(own, segments=numbers, **about)
        segments += batch.example.shape[1]
    return found


def _slots(batch: TokenBatch) -> Array:
    slots = slots_of(batch)
    if slots is not None:
        return slots
    return jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)


def _joint(batches: Sequence[TokenBatch], slots: Sequence[Array]) -> TokenBatch:
    places = list(accumulate((batch.tokens.shape[1] for batch in batches), initial=0))
    numbers = list(accumulate((batch.example.shape[1] for batch in batches), initial=0))

    def joined(name: str) -> Array:
        return jnp.concatenate([getattr(batch, name) for batch in batches], axis=1)

    segments = [
        jnp.where(batch.segments > 0, batch.segments + before, 0)
        for batch, before in zip(batches, numbers, strict=False)
    ]
    moved = [each + before for each, before in zip(slots, places, strict=False)]
    return TokenBatch(
        tokens=joined("tokens"),
        targets=joined("targets"),
        segments=jnp.concatenate(segments, axis=1),
        positions=joined("positions"),
        mask=joined("mask"),
        example=joined("example"),
        tiles=_joint_tiles([batch.tiles for batch in batches if batch.tiles], places),
        slots=jnp.concatenate(moved, axis=1),
        max_targets=sum(each.shape[1] for each in slots),
    )


def _joint_tiles(tiles: Sequence[Tiles], places: Sequence[int]) -> Tiles:
    """Tiles of all, of equal kinds together, so that there are no more products than for one."""
    kinds: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by shape: (which batch, which kind)
    for i, each in enumerate(tiles):
        for j, (queries, keys) in enumerate(zip(each.queries, each.keys, strict=True)):
            kinds.setdefault((queries.shape[2], keys.shape[2]), []).append((i, j))

    def gathered(part: str) -> tuple[Array, ...]:
        return tuple(
            jnp.concatenate(
                [_shifted(getattr(tiles[i], part)[j], places[i]) for i, j in members], axis=1
            )
            for members in kinds.values()
        )

    before, count = {}, 0
    for members in kinds.values():
        for i, j in members:
            before[i, j] = count
            count += tiles[i].queries[j].shape[1] * tiles[i].queries[j].shape[2]
    back = [_moved_back(each, before, i) for i, each in enumerate(tiles)]
    return Tiles(gathered("queries"), gathered("keys"), jnp.concatenate(back, axis=1))


def _shifted(places: Array, by: int) -> Array:
    return jnp.where(places >= 0, places + by, -1)


def _moved_back(tiles: Tiles, before: Mapping[tuple[int, int], int], i: int) -> Array:
    """`Tiles.back` of the i-th batch, counted among the queries of all."""
    begin, back = 0, tiles.back
    for j, queries in enumerate(tiles.queries):
        end = begin + queries.shape[1] * queries.shape[2]
        inside = (tiles.back >= begin) & (tiles.back < end)
        back = jnp.where(inside, tiles.back - begin + before[i, j], back)
        begin = end
    return back
