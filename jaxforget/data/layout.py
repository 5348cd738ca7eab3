"""Training batches as rows without gaps: a row holds its examples one behind the other.

A row is as long as the fullest row of any step, so that little is empty. Attention over such a row
goes in tiles, which hold an example's own places alone (`Tiles`).
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from jaxforget.data.pack import Columns, fill, pack, round_up, target_slots
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.types import Tiles, TokenBatch

_TILE = 64
"""Queries of a tile at least, on CPUs the fastest of 48, 64, 72 and 144: see docs/performance.md"""
_DEEP = 8  # tiles an example is cut into, at most: each is a product of its own shape to compile
_MULTIPLE = 32  # of a row's length


@dataclass(frozen=True)
class Shape:
    """Shape of one role's batches.

    Attributes:
      rows: B.
      length: L, places of a row.
      segments: S, most examples of a row.
      targets: T, most labelled targets of a row.
      tile: queries of a tile of attention; None: none, rows were packed to a length asked for.
      tiles: how many j-th tiles a row has, at most: those of examples longer than j x tile.
    """

    rows: int
    length: int
    segments: int
    targets: int
    tile: int | None = None
    tiles: tuple[int, ...] = ()


def choose_tile(longest: int) -> int:
    """Queries of a tile for examples of so many tokens at most.

    The larger it is, the more of what attention computes is above the diagonal or beyond the
    example's end; the smaller, the more products there are, and the smaller.
    """
    if longest <= _TILE:
        return max(round_up(longest, 16), 16)
    return _TILE * -(-longest // (_TILE * _DEEP))


def balanced(sizes: np.ndarray, rows: int) -> list[list[int]]:
    """Distribute items over `rows` rows of nearly equal sums: longest first, each to the emptiest.

    Args:
      sizes: integers `[k]`.
      rows: at least 1.
    Returns:
      The items (indices into `sizes`) of each row, in order of assignment. Deterministic.
    """
    emptiest = [(0, row) for row in range(rows)]
    items: list[list[int]] = [[] for _ in range(rows)]
    for item in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        total, row = emptiest[0]
        items[row].append(item)
        heapq.heapreplace(emptiest, (total + int(sizes[item]), row))
    return items


def shape_of(
    tokenised: TokenisedSet,
    drawn: Sequence[np.ndarray],
    sizes: Sequence[np.ndarray],
    rows: int,
    tile: int,
) -> Shape:
    """The least shape that fits every step.

    Args:
      tokenised: the set of the role.
      drawn: examples of each step.
      sizes: by which each step's examples are distributed over the rows; see `lay`.
      rows: of a batch.
      tile: queries of a tile.
    """
    length = segments = targets = 1
    deep = max(1, -(-int(tokenised.lengths.max(initial=1)) // tile))
    most = np.zeros(deep, np.int64)
    for ids, places in zip(drawn, sizes, strict=True):
        lengths, labels = tokenised.lengths[ids], tokenised.label_counts[ids]
        for group in balanced(places, rows):
            length = max(length, int(lengths[group].sum()))
            segments = max(segments, len(group))
            targets = max(targets, int(labels[group].sum()))
            most = np.maximum(most, _tile_counts(lengths[group], tile, deep))
    length = round_up(length, _MULTIPLE)
    tiles = tuple(most[most > 0].tolist())
    return Shape(rows, length, segments, target_slots(targets, length), tile, tiles)


def common(shapes: Iterable[Shape]) -> Shape:
    """The least shape that batches of each of these shapes fit into.

    Raises:
      ValueError: they differ in their tiles' size, or in the length asked for.
    """
    shapes = list(shapes)
    kinds = {(shape.tile, None if shape.tile else shape.length) for shape in shapes}
    if len(kinds) != 1:
        raise ValueError(f"shapes of {len(kinds)} kinds have no common one: {sorted(kinds)}")
    numbers = [field.name for field in fields(Shape) if field.name not in ("tile", "tiles")]
    most = {name: max(getattr(shape, name) for shape in shapes) for name in numbers}
    tiles = tuple(max(each) for each in zip_longest(*(s.tiles for s in shapes), fillvalue=0))
    return replace(shapes[0], **most, tiles=tiles)


def lay(
    tokenised: TokenisedSet, examples: np.ndarray, sizes: np.ndarray, shape: Shape
) -> tuple[TokenBatch, Columns]:
    """Chosen examples as one batch.

    Args:
      tokenised: the set.
      examples: indices into the set `[k]`; one may occur more than once.
      sizes: integers `[k]`, by which they are distributed over the rows: partners in several sets
        that have the same sizes there have the same row and segment. In rows of a length asked
        for they are also the places reserved for each.
      shape: of the batch.
    Returns:
      As `pack`.
    Raises:
      ValueError: they do not fit.
    """
    chosen = np.asarray(examples, np.int64)
    if shape.tile is None:
        return pack(
            tokenised,
            chosen,
            rows=shape.rows,
            length=shape.length,
            max_segments=shape.segments,
            max_targets=shape.targets,
            sizes=sizes,
        )
    members = [chosen[group] for group in balanced(sizes, shape.rows)]
    fullest = max(int(tokenised.lengths[group].sum()) for group in members)
    if fullest > shape.length:
        raise ValueError(f"a row of {len(chosen)} examples has {fullest} tokens: {shape}")
    tiles = _tiles([tokenised.lengths[group] for group in members], shape)
    batch, columns = fill(
        tokenised, members, shape.rows, shape.length, shape.segments, shape.targets
    )
    return replace(batch, tiles=tiles), columns


def _tiles(rows: Sequence[np.ndarray], shape: Shape) -> Tiles:
    """The tiles of rows that hold examples of these lengths one behind the other."""
    assert shape.tile is not None
    within = np.arange(shape.tile)
    queries, keys = [], []
    back: Any = np.zeros((shape.rows, shape.length), np.int32)
    before = 0  # queries of the tiles that come first
    for j, count in enumerate(shape.tiles):
        asked: Any = np.full((shape.rows, count, shape.tile), -1, np.int32)
        seen: Any = np.full((shape.rows, count, (j + 1) * shape.tile), -1, np.int32)
        for row, lengths in enumerate(rows):
            long = lengths > j * shape.tile
            begins, ends = (np.cumsum(lengths) - lengths)[long], np.cumsum(lengths)[long]
            if len(begins) > count:
                raise ValueError(f"{len(begins)} examples have tile {j}, more than {count}")
            _spans(asked[row], begins + j * shape.tile, ends)
            _spans(seen[row], begins, ends)
            slots = before + np.arange(len(begins))[:, None] * shape.tile + within[None, :]
            there = asked[row, : len(begins)]
            back[row, there[there >= 0]] = slots[there >= 0]
        before += count * shape.tile
        queries.append(asked)
        keys.append(seen)
    return Tiles(tuple(queries), tuple(keys), back)


def _spans(out: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
    """begin, begin + 1, .. in each line of `out`, as far as before its end."""
    places = begins[:, None] + np.arange(out.shape[1])[None, :]
    out[: len(begins)] = np.where(places < ends[:, None], places, -1)


def _tile_counts(lengths: np.ndarray, tile: int, deep: int) -> np.ndarray:
    return (lengths[None, :] > tile * np.arange(deep)[:, None]).sum(axis=1)
