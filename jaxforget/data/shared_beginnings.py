"""Rows in which examples that begin alike share what they begin with.

A question with its answers is a tree: the answers grow from the question, and from one another as
far as they say the same. A row holds whole trees, each place of them once, every branch behind what
it grows from; attention sees what a place grows from and nothing else (`TokenBatch.until`). What
all examples begin with, such as a system prompt, is the root of every row.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxforget.data.pack import assign, refuse_longer
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.types import TokenBatch

_TARGETS = 64  # T is a multiple of it, so that sets share programs
_ROOMY = 512
_LEAST = 16  # places that are worth being shared: fewer would only bind examples to one row


class Alike(NamedTuple):
    """Examples in an order that puts those that begin alike side by side.

    Attributes:
      order: the examples, int64 `[n]`.
      shared: places, from its first, that each shares with the one before it in `order`: the same
        token, target and label; int64 `[n]`, 0 for the first.
      root: places that all share; 0 where they are few.
    """

    order: np.ndarray
    shared: np.ndarray
    root: int


class Tree(NamedTuple):
    """Examples that stand in one row because they share places.

    Attributes:
      begin, end: which of `Alike.order`.
      size: places that they take together, without the root.
    """

    begin: int
    end: int
    size: int


class Packed(NamedTuple):
    """A packed set.

    Attributes:
      batches: of one shape.
      labels: for every batch, which labelled targets of the set are found in it; int64, flat.
      places: for every batch, at which of its labelled places, counted row by row, each is found.
    """

    batches: list[TokenBatch]
    labels: list[np.ndarray]
    places: list[np.ndarray]


def alike(tokenised: TokenisedSet) -> Alike:
    """What the examples of a set share."""
    # places are the same where these numbers are; big-endian, so that bytes sort as they do
    same = (
        (tokenised.tokens.astype(np.int64) << 32)
        | (tokenised.targets.astype(np.int64) << 1)
        | tokenised.mask
    ).astype(">i8")
    text, ends = same.tobytes(), (tokenised.offsets * same.itemsize).tolist()
    order = sorted(range(len(tokenised)), key=lambda index: text[ends[index] : ends[index + 1]])
    shared = np.zeros(len(order), np.int64)
    for at, (left, right) in enumerate(zip(order, order[1:], strict=False), start=1):
        a, b = (same[slice(*tokenised.offsets[index : index + 2])] for index in (left, right))
        most = min(len(a), len(b))
        shared[at] = np.append(a[:most] != b[:most], True).argmax()
    # one place at least is left of each example
    root = int(min(shared[1:].min(), tokenised.lengths.min() - 1)) if len(order) > 1 else 0
    return Alike(np.asarray(order, np.int64), shared, root if root >= _LEAST else 0)


def trees(tokenised: TokenisedSet, found: Alike, length: int) -> list[Tree]:
    """Examples by what they share, in trees that fit a row of `length` places."""
    sizes = tokenised.lengths[found.order] - found.root
    shared = found.shared - found.root
    grown: list[Tree] = []
    begin, size = 0, int(sizes[0])
    for at in range(1, len(sizes)):
        more = int(sizes[at] - shared[at])
        if shared[at] < _LEAST or size + more > length - found.root:
            grown.append(Tree(begin, at, size))
            begin, size, more = at, 0, int(sizes[at])
        size += more
    return [*grown, Tree(begin, len(sizes), size)]


def row_length(tokenised: TokenisedSet, found: Alike) -> int:
    """Places of a row that few trees have to be divided for: a multiple of 64."""
    longest = int(tokenised.lengths.max())
    grown = trees(tokenised, found, max(longest, _ROOMY))
    whole = found.root + max(tree.size for tree in grown)
    return -(-max(256, longest, min(whole, _ROOMY)) // 64) * 64


def pack_shared(
    tokenised: TokenisedSet, *, rows: int, length: int | None = None, unseen: int | None = None
) -> Packed:
    """Pack a whole set densely, every place that examples share once a row.

    Args:
      tokenised: the set; its examples must fit `length` (UserError otherwise).
      rows: B, rows of each batch.
      length: L, places of a row; None: see `row_length`.
      unseen: a token that attention passes over; None: it sees all.
    Returns:
      See `Packed`. Segments are 1 at all tokens; `example` is -1, as places may belong to several.
    """
    found = alike(tokenised)
    length = length or row_length(tokenised, found)
    refuse_longer(tokenised, length)
    grown = trees(tokenised, found, length)
    groups = assign(np.asarray([tree.size for tree in grown]), length - found.root)
    count = -(-len(groups) // rows) * rows
    filled = [[grown[item] for item in group] for group in groups]
    place, until = _placed(tokenised, found, filled, length)
    columns = {
        "tokens": tokenised.tokens,
        "targets": tokenised.targets,
        "segments": np.ones_like(tokenised.tokens),
        "positions": np.arange(len(place)) - np.repeat(tokenised.offsets[:-1], tokenised.lengths),
        "mask": tokenised.mask.astype(np.float32),
    }
    spread = {"until": np.pad(until, (0, count * length - len(until)))}
    for name, values in columns.items():
        spread[name] = np.zeros(count * length, np.float32 if name == "mask" else np.int32)
        spread[name][place] = values
    if unseen is not None:
        spread["until"][spread["tokens"] == unseen] = 0
    wide: dict[str, Any] = {n: values.reshape(count, length) for n, values in spread.items()}
    slots = int(wide["mask"].sum(axis=1).max())
    slots = min(-(-slots // _TARGETS) * _TARGETS, length)
    nobody: Any = np.full((rows, 1), -1, np.int32)
    batches = [
        TokenBatch(
            **{name: values[at : at + rows] for name, values in wide.items()},
            example=nobody,
            max_targets=slots,
        )
        for at in range(0, count, rows)
    ]
    return Packed(batches, *_owned(place[tokenised.mask], spread["mask"], rows * length))


def _placed(
    tokenised: TokenisedSet, found: Alike, rows: Sequence[Sequence[Tree]], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flat place of every token of the set, int64 `[N]`, and `until` of the rows, int32."""
    place = np.zeros(len(tokenised.tokens), np.int64)
    until = np.zeros(len(rows) * length, np.int32)
    for row, members in enumerate(rows):
        first = row * length
        free = first + found.root  # the first place that is not taken
        for tree in members:
            path = np.arange(first, free)[: found.root]  # places of the example at hand
            for example, shared in _branches(found, tree):
                until[path[shared:]] = free - first
                more = int(tokenised.lengths[example]) - shared
                path = np.append(path[:shared], np.arange(free, free + more))
                free += more
                place[slice(*tokenised.offsets[example : example + 2])] = path
            until[path[found.root :]] = free - first
        until[first : first + found.root] = free - first
    return place, until


def _branches(found: Alike, tree: Tree) -> Iterator[tuple[int, int]]:
    """The examples of a tree, and how many places each shares with the one before."""
    yield int(found.order[tree.begin]), found.root
    inner = slice(tree.begin + 1, tree.end)
    yield from zip(found.order[inner].tolist(), found.shared[inner].tolist(), strict=True)


def _owned(
    place: np.ndarray, mask: np.ndarray, size: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`Packed.labels` and `.places`, from the flat place of every label; `size` of a batch."""
    labelled = np.flatnonzero(mask)
    ends = np.searchsorted(labelled, np.arange(0, len(mask) + 1, size))
    which = np.searchsorted(labelled, place)
    order = np.argsort(which, kind="stable")
    cuts = np.searchsorted(which[order], ends)
    parts = [order[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    return parts, [which[part] - start for part, start in zip(parts, ends, strict=False)]
