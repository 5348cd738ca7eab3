"""Rows in which answers to the same question share one copy of it.

A question with k answers becomes k + 1 segments of a row: the question without its last token,
and every answer led by that token, whose `parents` point to the question's segment. Attention
sees the parent as if it stood before the answer; nothing is computed twice. What all questions
begin with, such as a system prompt, stands once at the head of each row (`TokenBatch.common`).
"""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from jaxforget.data.pack import assign, refuse_longer
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.types import TokenBatch

_TARGETS, _SEGMENTS = 64, 32  # T and S are multiples of these, so that sets share programs
_ROOMY = 512
_COMMON = 16  # least tokens worth a place at the head of rows


class Family(NamedTuple):
    """Examples that begin alike.

    Attributes:
      examples: indices into the set.
      shared: tokens they share behind what all examples do, which are computed once; 0 for an
        example alone.
      size: places that they take together, without what all examples share.
    """

    examples: tuple[int, ...]
    shared: int
    size: int


class Pieces(NamedTuple):
    """Slices of examples, each a segment; int64 `[k]` each.

    Attributes:
      row, segment, parent: where, counted from 0, 1 and 1.
      begin, size: which of the set's flat tokens.
      first: position of the first token in its example.
      example: whose labelled targets these are; -1: nobody's.
    """

    row: np.ndarray
    segment: np.ndarray
    parent: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    first: np.ndarray
    example: np.ndarray


def families(tokenised: TokenisedSet, length: int, common: int = 0) -> list[Family]:
    """Examples by what they share, in families that fit a row.

    What is shared are the tokens before the one that predicts the first labelled target.

    Args:
      tokenised: the set.
      length: places of a row, those at its head included.
      common: tokens at the head of rows, see `common_tokens`.
    """
    alike: dict[bytes, list[int]] = defaultdict(list)
    shared, sizes = _unlabelled(tokenised) - common, tokenised.lengths - common
    found: list[Family] = []
    for example, (begin, count) in enumerate(zip(tokenised.offsets[:-1], shared, strict=True)):
        if count > 0:
            own = slice(begin + common, begin + common + count)
            alike[tokenised.tokens[own].tobytes()].append(example)
        else:
            found.append(Family((example,), 0, int(sizes[example])))
    for members in alike.values():
        found += _split(members, sizes, int(shared[members[0]]), length - common)
    return found


def common_tokens(tokenised: TokenisedSet) -> int:
    """How many unlabelled tokens all examples begin with; 0 where it is little, or one example."""
    starts = tokenised.offsets[:-1]
    most = int(_unlabelled(tokenised).min(initial=len(tokenised.tokens)))
    if len(starts) < 2 or most < _COMMON:
        return 0
    heads = tokenised.tokens[starts[:, None] + np.arange(most)]
    same = int(np.append((heads == heads[:1]).all(axis=0), False).argmin())
    return same if same >= _COMMON else 0


def _unlabelled(tokenised: TokenisedSet) -> np.ndarray:
    """Tokens before the first labelled place of each example; 0 where there is none."""
    labelled = np.flatnonzero(tokenised.mask)
    first = np.searchsorted(labelled, tokenised.offsets[:-1])
    place = np.append(labelled, len(tokenised.mask))[first]
    return np.where(place < tokenised.offsets[1:], place - tokenised.offsets[:-1], 0)


def _split(members: list[int], sizes: np.ndarray, shared: int, room: int) -> list[Family]:
    found, open_ones, size = [], [], shared
    for example in members:
        more = int(sizes[example]) - shared
        if open_ones and size + more > room:
            found.append(Family(tuple(open_ones), shared, size))
            open_ones, size = [], shared
        open_ones.append(example)
        size += more
    found.append(Family(tuple(open_ones), shared, size))
    return [each if len(each.examples) > 1 else each._replace(shared=0) for each in found]


def row_length(tokenised: TokenisedSet) -> int:
    """Tokens of a row that few families have to be split for: a multiple of 64."""
    longest, common = int(tokenised.lengths.max()), common_tokens(tokenised)
    members = families(tokenised, max(longest, _ROOMY), common)
    whole = common + max(each.size for each in members)
    return -(-max(256, longest, min(whole, _ROOMY)) // 64) * 64


def pack_shared(tokenised: TokenisedSet, *, rows: int, length: int) -> list[TokenBatch]:
    """Pack a whole set densely, each example once and each question as seldom as possible.

    Args:
      tokenised: the set; its examples must fit `length` (UserError otherwise).
      rows: B, rows of each batch.
      length: L, tokens of a row.
    Returns:
      Batches of one shape, as `pack_all` gives, with `parents` and `common`.
    """
    refuse_longer(tokenised, length)
    common = common_tokens(tokenised)
    members = families(tokenised, length, common)
    groups = assign(np.asarray([each.size for each in members]), length - common)
    filled = [[members[item] for item in group] for group in groups]
    segments = 1 + max(sum(len(f.examples) + (f.shared > 0) for f in row) for row in filled)
    targets = max(
        sum(int(tokenised.label_counts[list(f.examples)].sum()) for f in row) for row in filled
    )
    shape = rows, length, -(-segments // _SEGMENTS) * _SEGMENTS
    slots = min(-(-targets // _TARGETS) * _TARGETS, length)
    return [
        _filled(tokenised, _pieces(tokenised, some, common), shape, slots, common)
        for some in (filled[start : start + rows] for start in range(0, len(filled), rows))
    ]


def _pieces(tokenised: TokenisedSet, rows: list[list[Family]], common: int) -> Pieces:
    found: list[tuple[int, ...]] = []
    for row, members in enumerate(rows):
        segment = 0
        if common:
            segment = 1
            found.append((row, 1, 1, int(tokenised.offsets[0]), common, 0, -1))
        for family in members:
            shared, parent = family.shared, 0
            if shared:
                segment += 1
                parent = segment
                begin = int(tokenised.offsets[family.examples[0]]) + common
                found.append((row, segment, segment, begin, shared, common, -1))
            for example in family.examples:
                segment += 1
                first = common + shared
                begin = int(tokenised.offsets[example]) + first
                size = int(tokenised.lengths[example]) - first
                found.append((row, segment, parent or segment, begin, size, first, example))
    return Pieces(*np.asarray(found, np.int64).reshape(-1, 7).T)


def _filled(
    tokenised: TokenisedSet, pieces: Pieces, shape: tuple[int, int, int], slots: int, common: int
) -> TokenBatch:
    rows, length, segments = shape
    before = np.cumsum(pieces.size) - pieces.size
    row_begin = np.searchsorted(pieces.row, np.arange(rows))
    offset = before - before[np.minimum(row_begin, len(before) - 1)][pieces.row]
    within = np.arange(int(pieces.size.sum())) - np.repeat(before, pieces.size)
    source = np.repeat(pieces.begin, pieces.size) + within
    place = np.repeat(pieces.row * length + offset, pieces.size) + within

    def spread(values: np.ndarray, dtype: type) -> Any:
        flat = np.zeros(rows * length, dtype)
        flat[place] = values
        return flat.reshape(rows, length)

    example: Any = np.full((rows, segments), -1, np.int32)
    example[pieces.row, pieces.segment - 1] = pieces.example
    return TokenBatch(
        tokens=spread(tokenised.tokens[source], np.int32),
        targets=spread(tokenised.targets[source], np.int32),
        segments=spread(np.repeat(pieces.segment, pieces.size), np.int32),
        positions=spread(np.repeat(pieces.first, pieces.size) + within, np.int32),
        mask=spread(tokenised.mask[source], np.float32),
        example=example,
        parents=spread(np.repeat(pieces.parent, pieces.size), np.int32),
        max_targets=slots,
        common=common,
    )
