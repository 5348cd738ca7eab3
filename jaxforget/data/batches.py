"""Which examples step k sees: a pure function of the step, whatever the number of devices."""

import functools
import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from jaxforget.data.layout import Shape, choose_tile, common, lay, shape_of
from jaxforget.data.pack import Columns, assign, refuse_longer, target_slots
from jaxforget.data.pairing import PAIRINGS, Entities, Pairing, Walks
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.types import TokenBatch


@dataclass(frozen=True)
class PairedBatches:
    """Batches of several roles, paired example by example.

    The anchor role is walked through in a new random order every epoch; the last batch of its
    epoch is as short as what is left. What the other roles give to a step is the pairing's choice.

    Attributes:
      sets: by role, e.g. {"forget": ..., "retain": ...}.
      batch_size: items of a step, >= 1; see `jaxforget.data.pairing`.
      seed: of all orders.
      length: tokens of a packed row, as many rows as a step needs; None: as many rows as
        `row_multiple`, without gaps, see `jaxforget.data.layout`.
      row_multiple: rows of each role are a multiple of this (shards x micro-batches). Neither it
        nor `length` changes which examples a step sees.
      pairing: see `Pairing`.
      ratio: examples of every other role for one of the anchor, > 0; for "proportional" alone.
      anchor: the role that defines the epoch; None: "forget", else the first.
      aligned: roles whose example i belongs to the anchor's example i, such as its alternative
        answer. They see the anchor's examples, in the same rows and segments.
      shapes: by role, set by `plan`.
    """

    sets: Mapping[str, TokenisedSet]
    batch_size: int
    seed: int
    length: int | None = None
    row_multiple: int = 1
    pairing: Pairing = "cyclic"
    ratio: float | None = None
    anchor: str | None = None
    aligned: frozenset[str] = frozenset()
    shapes: Mapping[str, Shape] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.row_multiple < 1:
            raise UserError(
                f"batch_size is {self.batch_size} and row_multiple {self.row_multiple}; "
                "both must be at least 1"
            )
        anchor = self.anchor
        if anchor is None:
            anchor = "forget" if "forget" in self.sets else next(iter(self.sets))
        if anchor not in self.sets:
            raise UserError(f"there is no set for the role {anchor!r}, which defines the epoch")
        object.__setattr__(self, "anchor", anchor)
        self._check_aligned()
        self._check_pairing()
        for role, tokenised in self.sets.items():
            if not len(tokenised):
                raise UserError(f"the {role} set is empty")
            if self.length is not None and self.shapes is None:  # a planned one fits its steps
                refuse_longer(tokenised, self.length, f"the {role} set")

    def _check_aligned(self) -> None:
        count = len(self.sets[self._anchor])
        for role in sorted(self.aligned & set(self.sets)):
            if len(self.sets[role]) != count:
                raise UserError(
                    f"the {role} set has {len(self.sets[role])} examples, the {self._anchor} set "
                    f"{count}; each needs its partner at the same place"
                )

    def _check_pairing(self) -> None:
        if self.pairing not in PAIRINGS:
            raise UserError(f"pairing: {self.pairing!r}. {did_you_mean(self.pairing, PAIRINGS)}")
        if self.ratio is not None and self.pairing != "proportional":
            raise UserError(f"ratio: only the pairing 'proportional' uses it, not {self.pairing!r}")
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio > 0):
            raise UserError(f"ratio: must be a finite number above 0, got {self.ratio}")
        if self.pairing == "alternate" and len(self.sets) < 2:
            raise UserError("pairing 'alternate': there is one set only, and nothing to alternate")
        if self.pairing != "modular":
            return
        for role in (self._anchor, "retain"):
            if role not in self.sets or self.sets[role].entities is None:
                raise UserError(f"pairing 'modular': the {role} set must say whom it is about")

    @functools.cached_property
    def _walks(self) -> Walks:
        return Walks(
            {role: len(tokenised) for role, tokenised in self.sets.items()},
            self._anchor,
            self.seed,
            self.pairing,
            self.ratio,
            self._entities(),
        )

    def _entities(self) -> dict[str, Entities] | None:
        if self.pairing != "modular":
            return None
        return {role: self.sets[role].entities or () for role in (self._anchor, "retain")}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, see `Pairing`."""
        return self._walks.steps(self.batch_size)

    @property
    def _anchor(self) -> str:
        assert self.anchor is not None
        return self.anchor

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which examples each step sees: equal data, equal value."""
        parts = [f"{self.pairing} {self._anchor} {self.batch_size} {self.seed}"]
        parts += [f"aligned {role}" for role in sorted(self.aligned)]
        parts += [f"{role} {self.sets[role].fingerprint}" for role in sorted(self.sets)]
        if self.ratio is not None:
            parts.append(f"ratio {self.ratio}")
        parts += [
            f"{role} {entities}" for role, entities in sorted((self._entities() or {}).items())
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def examples(self, step: int) -> dict[str, np.ndarray]:
        """Indices into each role's set for `step` >= 0; int64."""
        if step < 0:
            raise ValueError(f"step is {step}")
        found = self._walks.examples(step, self.batch_size)
        return found | {role: found[self._anchor] for role in self.sets if role in self.aligned}

    def _sizes(self, role: str, examples: np.ndarray) -> np.ndarray:
        """By which examples are put into rows: of partners the longest, so that they meet there."""
        partners = {self._anchor, *self.aligned} & set(self.sets)
        if role not in partners:
            partners = {role}
        each = [self.sets[partner].lengths[examples] for partner in partners]
        return np.max(each, axis=0)

    def plan(self, steps: int, tile: int | None = None) -> "PairedBatches":
        """These batches in shapes that fit every step below `steps` >= 1.

        Only lengths are looked at, so planning is fast. More steps never change which examples a
        step sees.

        Args:
          steps: that will be taken.
          tile: queries of a tile of attention; None: as suits the longest example.
        """
        drawn = [self.examples(step) for step in range(steps)]
        by_role = {role: [each[role] for each in drawn] for role in self.sets}
        shapes = plan_shapes(
            self.sets,
            by_role,
            {role: [self._sizes(role, ids) for ids in found] for role, found in by_role.items()},
            length=self.length,
            row_multiple=self.row_multiple,
            tile=tile,
        )
        return replace(self, shapes=shapes)

    def at(self, step: int) -> tuple[dict[str, TokenBatch], dict[str, Columns]]:
        """Batches of `step`, and the columns of each role's set in the same slots.

        Args:
          step: 0 .. steps - 1 of `plan(steps)`.
        Returns:
          (batch of NumPy arrays by role, columns `[B, T, ...]` by role and name). In a batch
          `example` holds indices into the role's set.
        Raises:
          ValueError: not planned, or the step lies beyond the plan and does not fit it.
        """
        if self.shapes is None:
            raise ValueError("call plan(steps) first: it fixes the shapes")
        batches, columns = {}, {}
        for role, chosen in self.examples(step).items():
            sizes = self._sizes(role, chosen)
            batches[role], columns[role] = lay(self.sets[role], chosen, sizes, self.shapes[role])
        return batches, columns


def plan_shapes(
    sets: Mapping[str, TokenisedSet],
    drawn: Mapping[str, Sequence[np.ndarray]],
    sizes: Mapping[str, Sequence[np.ndarray]],
    *,
    length: int | None,
    row_multiple: int,
    tile: int | None = None,
) -> dict[str, Shape]:
    """The least shapes that fit every step, of the roles that are drawn from.

    Args:
      sets: by role.
      drawn: by role, examples of each step.
      sizes: by role, places that each of them takes, or by which they are distributed over rows.
      length: tokens of a row; None: `row_multiple` rows hold the batch, whatever their length.
      row_multiple: rows are a multiple of this.
      tile: queries of a tile of attention; None: as suits the longest example of the sets.
    """
    tile = tile or tile_for(sets)
    return {
        role: shape_of(sets[role], ids, sizes[role], row_multiple, tile)
        if length is None
        else _packed_shape(sets[role], ids, sizes[role], length, row_multiple)
        for role, ids in drawn.items()
        if ids
    }


def tile_for(sets: Mapping[str, TokenisedSet]) -> int:
    """Queries of a tile that suit the longest example of several sets."""
    return choose_tile(max(int(each.lengths.max(initial=1)) for each in sets.values()))


def in_common(shapes: Sequence[Mapping[str, Shape]]) -> dict[str, Shape]:
    """By role, the least shape that fits batches of all of these, where any has the role."""
    roles = dict.fromkeys(role for each in shapes for role in each)
    return {role: common(each[role] for each in shapes if role in each) for role in roles}


_WASTE = 1 / 8
"""Places above those needed that a step may have for a compilation to be saved."""


def widened(
    plan: Callable[[int | None], Mapping[str, Shape]], shared: Mapping[str, Shape]
) -> Mapping[str, Shape] | None:
    """Shapes that others have too, where batches fit into them and little of them stays empty.

    Args:
      plan: from the queries of a tile to the least shapes that fit, by role.
      shared: those of several batches; roles that are not planned are left out.
    Returns:
      The least ones made as large as `shared`; None where that has over an eighth more places.
    """
    own = plan(next(iter(shared.values())).tile)
    wide = {role: common([shape, shared.get(role, shape)]) for role, shape in own.items()}
    need, have = (sum(s.rows * s.length for s in each.values()) for each in (own, wide))
    return wide if have <= need * (1 + _WASTE) else None


def _packed_shape(
    tokenised: TokenisedSet,
    drawn: Sequence[np.ndarray],
    sizes: Sequence[np.ndarray],
    length: int,
    row_multiple: int,
) -> Shape:
    rows = segments = targets = 1
    counts = tokenised.label_counts
    for ids, places in zip(drawn, sizes, strict=True):
        groups = assign(places, length)
        labels = counts[ids].tolist()
        rows = max(rows, len(groups))
        segments = max([segments, *map(len, groups)])
        targets = max([targets, *(sum(labels[item] for item in group) for group in groups)])
    rows = math.ceil(rows / row_multiple) * row_multiple
    return Shape(rows, length, segments, target_slots(targets, length))


def prefetch[T](
    fn: Callable[[int], T], start: int, stop: int, depth: int = 2
) -> Generator[T, None, None]:
    """fn(start), ..., fn(stop - 1), computed in order by one thread, at most `depth` ahead.

    An exception of `fn` is raised where its result would have come. Closing the generator waits
    for the call in progress and drops the rest.
    """
    ahead = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            for step in range(start, stop):
                ahead.append(pool.submit(fn, step))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
