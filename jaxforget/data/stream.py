"""Batches of a stream of tasks: which examples of which task a step sees, as a pure function.

All tasks' examples are one set, so an example is a number, whatever task it is of. A step takes
`batch_size` of the task being trained, some of them replaced by examples of the memory where they
are mixed; roles of their own get further draws from it. Nothing depends on devices or on where a
run was interrupted.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np

from jaxforget.data.batches import plan_shapes, widened
from jaxforget.data.layout import Shape, lay
from jaxforget.data.pack import Columns
from jaxforget.data.sets import TokenisedSet, fingerprint_of
from jaxforget.engine.errors import UserError
from jaxforget.engine.types import TokenBatch

TRAIN = "train"


def joined(sets: Sequence[TokenisedSet]) -> TokenisedSet:
    """All examples as one set, in order; columns are left out."""
    lengths = np.concatenate([each.lengths for each in sets])
    return TokenisedSet(
        np.concatenate([each.tokens for each in sets]),
        np.concatenate([each.targets for each in sets]),
        np.concatenate([each.mask for each in sets]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        np.concatenate([each.rows for each in sets]),
        fingerprint_of({}, *(each.fingerprint for each in sets)),
    )


def chosen(tokenised: TokenisedSet, ids: np.ndarray) -> TokenisedSet:
    """The set of these examples, in this order; columns are left out."""
    lengths = tokenised.lengths[ids]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    places = np.repeat(tokenised.offsets[ids], lengths) + inside
    return TokenisedSet(
        tokenised.tokens[places],
        tokenised.targets[places],
        tokenised.mask[places],
        offsets,
        tokenised.rows[ids],
        fingerprint_of({"ids": np.asarray(ids, np.int64)}, tokenised.fingerprint),
    )


def walk(
    ids: np.ndarray,
    first: int,
    count: int,
    seed: Sequence[int],
    *,
    views: int = 1,
    shuffled: bool = True,
) -> np.ndarray:
    """Entries `first` .. `first + count` of an endless walk through `ids`.

    Every pass has an order of its own, which the seed fixes.

    Args:
      ids: int64 `[n]`.
      first, count: of the entries.
      seed: of the orders.
      views: V >= 1: an entry is taken V times in a row, so that n V others lie between two visits
        to it, at the same number of views in all. Source: the view-batch model, Kang et al. 2025
        (arXiv 2503.18371), section 3.
      shuffled: False: every pass in the order of `ids`.
    """
    found = []
    for place in range(first, first + count):
        epoch, inside = divmod(place, len(ids) * views)
        found.append((epoch, inside // views))
    if not shuffled:
        return ids[[inside for _, inside in found]].astype(np.int64)
    orders = {epoch for epoch, _ in found}
    walks = {epoch: _order(tuple(seed), epoch, len(ids)) for epoch in orders}
    return ids[[walks[epoch][inside] for epoch, inside in found]].astype(np.int64)


@lru_cache(maxsize=16)
def _order(seed: tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    """Of a pass; steps that follow one another ask for the same one."""
    found = np.random.default_rng([*seed, epoch]).permutation(count)
    found.setflags(write=False)
    return found


def replayed(step: int, batch_size: int, share: float) -> tuple[int, int]:
    """(examples of the memory before this step, examples in it), whole numbers whose sum over any
    number of steps is within one of `share` of all examples."""
    before, after = (math.floor(n * batch_size * share + 1e-9) for n in (step, step + 1))
    return before, after - before


@dataclass(frozen=True)
class Draws:
    """Which examples every step of one task takes.

    Attributes:
      ids: of the task, int64.
      memory: examples to replay, int64; empty: none.
      batch_size: examples of a step in the role "train", those of the memory that are mixed in
        included.
      share: of them from the memory, in [0, 1); nothing is mixed while the memory is empty.
      roles: further roles -> what they draw from, and how many examples a step.
      seed: of the run and the task.
      views: see `walk`; of the task's own examples and of replayed ones.
      shuffled: False: the task's own examples come in the order of `ids`.
      in_turn: `memory` and what roles draw from are taken entry by entry, each once, as
        `jaxforget.data.rehearsal.rehearsed` has put them; they are no sets to walk through.
    """

    ids: np.ndarray
    memory: np.ndarray
    batch_size: int
    seed: tuple[int, ...]
    share: float = 0.0
    roles: Mapping[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    views: int = 1
    shuffled: bool = True
    in_turn: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"memory.share must be at least 0 and below 1, got {self.share}")
        if self.views < 1:
            raise UserError(f"views must be at least 1, got {self.views}")
        for role, (ids, _) in self.roles.items():
            if not len(ids):
                raise UserError(f"there is nothing to draw from for the role {role!r}")

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Examples by role for a step of the task, from 0; int64."""
        share = self.share if len(self.memory) else 0.0
        before, old = replayed(step, self.batch_size, share)
        first, count = step * self.batch_size - before, self.batch_size - old
        seed, how = (*self.seed, 0), {"views": self.views, "shuffled": self.shuffled}
        found = {TRAIN: walk(self.ids, first, count, seed, **how)}
        if old:
            again = self._old(self.memory, before, old, 1)
            found[TRAIN] = np.concatenate([found[TRAIN], again])
        for place, (role, (ids, count)) in enumerate(self.roles.items()):
            found[role] = self._old(ids, step * count, count, 2 + place)
        return found

    def _old(self, ids: np.ndarray, first: int, count: int, purpose: int) -> np.ndarray:
        if self.in_turn:
            return ids[first : first + count]
        return walk(ids, first, count, (*self.seed, purpose), views=self.views)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what the steps take."""
        arrays = {"ids": self.ids, "memory": self.memory}
        arrays |= {f"role {role}": ids for role, (ids, _) in self.roles.items()}
        counts = {role: count for role, (_, count) in self.roles.items()}
        how = (self.views, self.shuffled, self.in_turn)
        about = f"{self.batch_size} {self.seed} {self.share} {counts} {how}"
        return fingerprint_of({name: np.asarray(a, np.int64) for name, a in arrays.items()}, about)


@dataclass(frozen=True)
class StreamBatches:
    """Packed batches of one task.

    Attributes:
      sets: by role, whose examples the draws number.
      draws: step of the task -> examples by role.
      shapes: by role.
    """

    sets: Mapping[str, TokenisedSet]
    draws: Draws
    shapes: Mapping[str, Shape]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which examples each step sees."""
        parts = [self.draws.fingerprint, *(f"{r} {s.fingerprint}" for r, s in self.sets.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def at(self, step: int) -> tuple[dict[str, TokenBatch], dict[str, Columns]]:
        """Batches of a step of the task, and the columns of each role's set in the same slots."""
        batches, columns = {}, {}
        for role, ids in self.draws(step).items():
            tokenised = self.sets[role]
            sizes = tokenised.lengths[ids]
            batches[role], columns[role] = lay(tokenised, ids, sizes, self.shapes[role])
        return batches, columns


def planned(
    sets: Mapping[str, TokenisedSet],
    tasks: Sequence[tuple[Draws, int]],
    *,
    length: int | None,
    row_multiple: int,
    shared: Mapping[str, Shape] | None = None,
) -> list[StreamBatches]:
    """Batches of several tasks in shapes common to all, so that they share compiled programs.

    Args:
      sets: by role, of all tasks.
      tasks: draws and steps of each.
      length: tokens of a packed row; None: see `PairedBatches`.
      row_multiple: rows are a multiple of this.
      shared: shapes that further batches have, too, see `widened`; None: the least that fit.
    """
    drawn: dict[str, list[np.ndarray]] = {role: [] for role in sets}
    for draws, steps in tasks:
        for step in range(steps):
            for role, ids in draws(step).items():
                drawn[role].append(ids)
    sizes = {role: [sets[role].lengths[ids] for ids in found] for role, found in drawn.items()}
    plan = partial(plan_shapes, sets, drawn, sizes, length=length, row_multiple=row_multiple)
    wide = widened(lambda tile: plan(tile=tile), shared) if shared else None
    shapes = plan() if wide is None else wide
    return [StreamBatches(sets, draws, shapes) for draws, _ in tasks]
