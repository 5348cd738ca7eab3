"""Which examples step k sees: a pure function of the step, whatever the number of devices."""

import functools
import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxforget.data.pack import Columns, assign, choose_length, pack, refuse_longer, target_slots
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.types import TokenBatch


@dataclass(frozen=True)
class Shape:
    """Shape of one role's batches: rows B, examples of a row S, labelled targets of a row T."""

    rows: int
    segments: int
    targets: int


@dataclass(frozen=True)
class PairedBatches:
    """Batches of several roles, paired example by example.

    The anchor role is walked through in a new random order every epoch; the last batch of its
    epoch is as short as what is left. The other roles give as many examples as the anchor at each
    step and go round in their own random orders, across the anchor's epochs, so that each of
    their rows is seen equally often.

    Attributes:
      sets: by role, e.g. {"forget": ..., "retain": ...}.
      batch_size: examples of each role and step, >= 1.
      seed: of all orders.
      length: tokens of a packed row; None: `plan` chooses it by `choose_length`.
      row_multiple: rows of each role are a multiple of this (shards x micro-batches). Neither it
        nor `length` changes which examples a step sees.
      pairing: "cyclic", as above.
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
    pairing: Literal["cyclic"] = "cyclic"
    anchor: str | None = None
    aligned: frozenset[str] = frozenset()
    shapes: Mapping[str, Shape] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.row_multiple < 1:
            raise UserError(
                f"batch_size is {self.batch_size} and row_multiple {self.row_multiple}; "
                "both must be at least 1"
            )
        if self.pairing != "cyclic":
            raise UserError(f"pairing: {did_you_mean(self.pairing, ('cyclic',))}")
        anchor = self.anchor
        if anchor is None:
            anchor = "forget" if "forget" in self.sets else next(iter(self.sets))
        if anchor not in self.sets:
            raise UserError(f"there is no set for the role {anchor!r}, which defines the epoch")
        object.__setattr__(self, "anchor", anchor)
        self._check_aligned()
        for role, tokenised in self.sets.items():
            if not len(tokenised):
                raise UserError(f"the {role} set is empty")
            if self.length is not None:
                refuse_longer(tokenised, self.length, f"the {role} set")

    def _check_aligned(self) -> None:
        count = len(self.sets[self._anchor])
        for role in sorted(self.aligned & set(self.sets)):
            if len(self.sets[role]) != count:
                raise UserError(
                    f"the {role} set has {len(self.sets[role])} examples, the {self._anchor} set "
                    f"{count}; each needs its partner at the same place"
                )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every example of the anchor is seen once."""
        return math.ceil(len(self.sets[self._anchor]) / self.batch_size)

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
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def examples(self, step: int) -> dict[str, np.ndarray]:
        """Indices into each role's set for `step` >= 0; int64, as many for every role."""
        if step < 0:
            raise ValueError(f"step is {step}")
        count = len(self.sets[self._anchor])
        epoch, within = divmod(step, self.steps_per_epoch)
        begin = within * self.batch_size
        taken = min(self.batch_size, count - begin)
        start = epoch * count + begin
        return {role: self._round(self._walker(role), start, taken) for role in self.sets}

    def _walker(self, role: str) -> str:
        """The role whose walk this role follows."""
        return self._anchor if role in self.aligned else role

    def _sizes(self, role: str, examples: np.ndarray) -> np.ndarray:
        """Places each example takes in its row: partners reserve what the longest of them needs."""
        partners = {self._anchor, *self.aligned} & set(self.sets)
        if role not in partners:
            partners = {role}
        each = [self.sets[partner].lengths[examples] for partner in partners]
        return np.max(each, axis=0)

    def _round(self, role: str, start: int, taken: int) -> np.ndarray:
        """Places start .. start + taken of the role's endless walk."""
        count = len(self.sets[role])
        epochs, places = np.divmod(np.arange(start, start + taken), count)
        drawn = np.empty(taken, np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            drawn[here] = order(self.seed, role, epoch, count)[places[here]]
        return drawn

    def plan(self, steps: int) -> "PairedBatches":
        """These batches with a length and shapes that fit every step below `steps` >= 1.

        Rows are the most that any planned step needs, rounded up to `row_multiple`. Only lengths
        are looked at, so planning is fast. More steps never change which examples a step sees.
        """
        drawn = [self.examples(step) for step in range(steps)]
        by_role = {role: [each[role] for each in drawn] for role in self.sets}
        sizes = {role: [self._sizes(role, ids) for ids in by_role[role]] for role in self.sets}
        length = self.length or choose_length(list(sizes.values()), row_multiple=self.row_multiple)
        shapes = {
            role: _shape(tokenised, by_role[role], sizes[role], length, self.row_multiple)
            for role, tokenised in self.sets.items()
        }
        return replace(self, length=length, shapes=shapes)

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
        if self.shapes is None or self.length is None:
            raise ValueError("call plan(steps) first: it fixes the shapes")
        batches, columns = {}, {}
        for role, chosen in self.examples(step).items():
            shape = self.shapes[role]
            batches[role], columns[role] = pack(
                self.sets[role],
                chosen,
                rows=shape.rows,
                length=self.length,
                max_segments=shape.segments,
                max_targets=shape.targets,
                sizes=self._sizes(role, chosen),
            )
        return batches, columns


def _shape(
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
        segments = max(segments, *map(len, groups))
        targets = max(targets, *(sum(labels[item] for item in group) for group in groups))
    rows = math.ceil(rows / row_multiple) * row_multiple
    return Shape(rows, segments, target_slots(targets, length))


@functools.lru_cache(maxsize=16)
def order(seed: int, role: str, epoch: int, count: int) -> np.ndarray:
    """The order of a role's examples in one epoch: int64 `[count]`, a permutation.

    Drawn from raw Philox words, whose stream NumPy keeps the same in every version.
    """
    key = hashlib.sha256(f"{seed}/{role}/{epoch}".encode()).digest()[:16]
    words = np.random.Philox(key=int.from_bytes(key)).random_raw(count)
    drawn = np.argsort(words, kind="stable")
    drawn.setflags(write=False)
    return drawn


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
