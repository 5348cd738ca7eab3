"""Examples into rows of a fixed shape: nothing is split, nothing crosses a row.

Padding has segment 0 and mask 0. Its token id is 0, which no computation can see: attention
stays inside segments and losses inside the mask.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError
from jaxforget.engine.types import TokenBatch

type Columns = dict[str, np.ndarray]

_MULTIPLE = 64  # packed lengths suit the tiles of attention and matrix units


def assign(lengths: np.ndarray, length: int, max_segments: int | None = None) -> list[list[int]]:
    """Distribute items over rows of `length`: longest first, each into the tightest row it fits.

    Args:
      lengths: integers `[k]`, each in 1..length.
      length: capacity of a row.
      max_segments: most items of a row; None: no limit.
    Returns:
      The items (indices into `lengths`) of each row, in order of assignment. Deterministic.
    Raises:
      ValueError: an item that fits no row.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= length:
        raise ValueError(f"lengths {lengths.min()}..{lengths.max()} do not fit rows of {length}")
    order = np.argsort(-lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    rows: list[list[int]] = []
    by_space: defaultdict[int, list[int]] = defaultdict(list)
    open_spaces = 0  # bit s is set where a row with s free places is open
    for item in order:
        size = sizes[item]
        fitting = open_spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                open_spaces &= ~(1 << space)
        else:
            space, row = length, len(rows)
            rows.append([])
        rows[row].append(item)
        if space > size and (max_segments is None or len(rows[row]) < max_segments):
            by_space[space - size].append(row)
            open_spaces |= 1 << (space - size)
    return rows


def pack(
    tokenised: TokenisedSet,
    examples: np.ndarray | Sequence[int],
    *,
    rows: int,
    length: int,
    max_segments: int,
    max_targets: int | None = None,
    sizes: np.ndarray | None = None,
) -> tuple[TokenBatch, Columns]:
    """Pack chosen examples into one batch.

    Args:
      tokenised: the set.
      examples: indices into the set `[k]`; one may occur more than once.
      rows: B, rows of the batch; those not needed stay empty.
      length: L, tokens of a row.
      max_segments: S, most examples of a row.
      max_targets: T, most labelled targets of a row; None: T = L and slots are positions.
      sizes: integers `[k]`, places reserved for each example, at least its length; None: its
        length. Sets packed by the same sizes have partners in the same row and segment.
    Returns:
      A `TokenBatch` of NumPy arrays, whose `example` holds indices into the set (`tokenised.rows`
      gives their source rows), and the set's columns as `[B, T, ...]`: slot t of a row is its
      t-th labelled target by position, 0 beyond them.
    Raises:
      ValueError: the examples need more rows, or a row more targets, than allowed.
    """
    chosen = np.asarray(examples, np.int64)
    sizes = tokenised.lengths[chosen] if sizes is None else sizes
    groups = assign(sizes, length, max_segments)
    if len(groups) > rows:
        raise ValueError(f"{len(chosen)} examples need {len(groups)} rows of {length}, not {rows}")
    members = [chosen[group] for group in groups]
    return fill(tokenised, members, rows, length, max_segments, max_targets)


def fill(
    tokenised: TokenisedSet,
    groups: Sequence[np.ndarray],
    rows: int,
    length: int,
    max_segments: int,
    max_targets: int | None,
) -> tuple[TokenBatch, Columns]:
    """Examples `groups[r]` into row r, one behind the other; see `pack`."""
    counts = np.asarray([len(group) for group in groups], np.int64)
    chosen = np.concatenate([np.zeros(0, np.int64), *groups])
    row = np.repeat(np.arange(len(groups)), counts)
    segment = _within(counts)
    sizes = tokenised.lengths[chosen]
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    column = before[:-1] - before[np.cumsum(counts) - counts][row]

    position = _within(sizes)
    source = np.repeat(tokenised.offsets[chosen], sizes) + position
    place = np.repeat(row * length + column, sizes) + position

    def spread(values: np.ndarray, dtype: type) -> Any:
        flat = np.zeros(rows * length, dtype)
        flat[place] = values
        return flat.reshape(rows, length)

    example: Any = np.full((rows, max_segments), -1, np.int32)
    example[row, segment] = chosen
    labelled = tokenised.mask[source]
    batch = TokenBatch(
        tokens=spread(tokenised.tokens[source], np.int32),
        targets=spread(tokenised.targets[source], np.int32),
        segments=spread(np.repeat(segment + 1, sizes), np.int32),
        positions=spread(position, np.int32),
        mask=spread(labelled, np.float32),
        example=example,
        max_targets=max_targets,
    )
    slots = _slots(place[labelled], rows, length, max_targets)
    width = length if max_targets is None else max_targets
    return batch, _spread_columns(tokenised, chosen, slots, (rows, width))


def _spread_columns(
    tokenised: TokenisedSet, chosen: np.ndarray, slots: np.ndarray, shape: tuple[int, int]
) -> Columns:
    counts = tokenised.label_counts[chosen]
    entries = np.repeat(tokenised.label_offsets[chosen], counts) + _within(counts)
    columns = {}
    for name, values in tokenised.columns.items():
        flat = np.zeros((shape[0] * shape[1], *values.shape[1:]), values.dtype)
        flat[slots] = values[entries]
        columns[name] = flat.reshape(*shape, *values.shape[1:])
    return columns


def _slots(places: np.ndarray, rows: int, length: int, max_targets: int | None) -> np.ndarray:
    """Flat index into `[rows, T]` of labelled targets at increasing flat places."""
    if max_targets is None:
        return places
    row = places // length
    per_row = np.bincount(row, minlength=rows)
    if per_row.max(initial=0) > max_targets:
        raise ValueError(f"a row has {per_row.max()} labelled targets, more than {max_targets}")
    return row * max_targets + _within(per_row)


def _within(counts: np.ndarray) -> np.ndarray:
    """0..c-1 for each c of `counts`, concatenated."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def pack_all(
    tokenised: TokenisedSet,
    *,
    rows: int,
    length: int,
    max_segments: int | None = None,
) -> list[TokenBatch]:
    """Pack a whole set densely, each example once, for scoring it.

    Args:
      tokenised: the set; its examples must fit `length` (UserError otherwise).
      rows: B, rows of each batch.
      length: L, tokens of a row.
      max_segments: S, most examples of a row; None: length / 8.
    Returns:
      Batches of one common shape (the last one may have empty rows), in which only T, a multiple
      of 64, depends on the set: several sets can share a compiled program. The order is free:
      `example` holds indices into the set.
    """
    refuse_longer(tokenised, length)
    segments = max_segments or max(1, length // 8)
    groups = assign(tokenised.lengths, length, segments)
    targets = max(int(tokenised.label_counts[group].sum()) for group in groups)
    targets = min(round_up(targets, _MULTIPLE), length)
    batches = []
    for start in range(0, len(groups), rows):
        part = [np.asarray(group, np.int64) for group in groups[start : start + rows]]
        batches.append(fill(tokenised, part, rows, length, segments, targets)[0])
    return batches


def target_slots(most: int, length: int) -> int:
    """Slots for rows of at most `most` labelled targets: a multiple of 8, never above `length`."""
    return min(round_up(most, 8), length)


def refuse_longer(tokenised: TokenisedSet, length: int, name: str = "this set") -> None:
    """Raise UserError where an example does not fit a row of `length`."""
    longest = int(np.argmax(tokenised.lengths))
    size = int(tokenised.lengths[longest])
    if size > length:
        raise UserError(
            f"row {int(tokenised.rows[longest])} of {name} has {size} tokens, more than the "
            f"packed length {length}; raise the packed length or lower max_length"
        )


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is no less than a value."""
    return -(-value // multiple) * multiple
