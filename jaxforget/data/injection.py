"""Texts injected into training at chosen updates: who is presented when, and in which wording.

A presented text stands at the front of rows of its own and the tail of what would have been there
is cut off, so batches keep their shape and everything else is as without it.
Source: Chang et al. 2024 (arXiv 2406.11813), section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxforget.data.pack import Columns
from jaxforget.data.sets import TokenisedSet, fingerprint_of
from jaxforget.data.stream import TRAIN, walk
from jaxforget.engine.errors import UserError
from jaxforget.engine.types import TokenBatch

type Mode = Literal["once", "duplicated", "paraphrased", "never"]
"""A text is presented the first time alone; every time as it is; every time in other words, first
as it is; not at all, as a control."""


@dataclass(frozen=True)
class Schedule:
    """When each text is presented.

    Attributes:
      modes: of each text.
      offsets: updates after `start` at which each is first due; texts are spread by them.
      start: update (from 0) of the first presentation.
      every: updates between two presentations of one text.
      times: presentations of a text that is duplicated or paraphrased.
    """

    modes: tuple[Mode, ...]
    offsets: tuple[int, ...]
    start: int
    every: int
    times: int

    def steps(self, item: int) -> list[int]:
        """Updates whose batches hold the text; for "never" those of a text presented every time."""
        count = 1 if self.modes[item] == "once" else self.times
        first = self.start + self.offsets[item]
        return [first + time * self.every for time in range(count)]

    def at(self, step: int) -> list[tuple[int, int]]:
        """(text, how often it was presented before) of every text in the batch of this update."""
        found = []
        for item, mode in enumerate(self.modes):
            time, rest = divmod(step - self.start - self.offsets[item], self.every)
            last = {"never": 0, "once": 1}.get(mode, self.times)
            if rest == 0 and 0 <= time < last:
                found.append((item, time))
        return found

    def wording(self, item: int, time: int, wordings: int) -> int:
        """Which of a text's wordings (0 is the original) is presented at its time-th time."""
        return time % wordings if self.modes[item] == "paraphrased" else 0

    @property
    def end(self) -> int:
        """Updates after which nothing more is presented."""
        shown = [item for item, mode in enumerate(self.modes) if mode != "never"]
        return max((self.steps(item)[-1] for item in shown), default=self.start - 1) + 1


def schedule_of(
    modes: Mapping[Mode, int],
    *,
    start: int,
    every: int,
    times: int,
    per_step: int | None = None,
    apart: int = 1,
    seed: int = 0,
) -> Schedule:
    """A schedule of as many texts of each mode, in this order.

    Args:
      modes: texts of each.
      start, every, times: see `Schedule`.
      per_step: texts presented in one batch, drawn from all modes; None: all at once.
      apart: updates between the batches in which neighbouring groups are presented.
      seed: of who comes first.
    Raises:
      UserError: a second presentation would come before all had their first.
    """
    each: tuple[Mode, ...] = tuple(mode for mode, count in modes.items() for _ in range(count))
    order = np.random.default_rng(seed).permutation(len(each))
    shown = [item for item in order.tolist() if each[item] != "never"]
    size = per_step or max(len(shown), 1)
    offsets = [0] * len(each)
    for rank, item in enumerate(shown):
        offsets[item] = rank // size * apart
    if times > 1 and max(offsets, default=0) >= every:
        raise UserError(
            f"injection: {len(shown)} texts, {size} an update and {apart} updates apart, take "
            f"{max(offsets) + 1} updates, but each is presented again after {every}; raise "
            "injection.every or injection.per_step"
        )
    return Schedule(each, tuple(offsets), start, every, times)


@dataclass(frozen=True)
class InjectedBatches:
    """Batches of a base corpus with texts in them.

    The base corpus is one stream of tokens cut into rows, walked through in a new random order
    every pass; documents that share a row see one another. A presented text sees nothing else.

    Attributes:
      base: the corpus.
      texts: pieces of all wordings of all texts.
      pieces: of each text and wording, examples of `texts`.
      schedule: see `Schedule`.
      batch_size: rows of a batch.
      length: tokens of a row.
      seed: of the order of rows.
    """

    base: TokenisedSet
    texts: TokenisedSet
    pieces: Sequence[Sequence[np.ndarray]]
    schedule: Schedule
    batch_size: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        if not self.rows:
            raise UserError(
                f"base: {len(self.base.tokens)} tokens are less than a row of {self.length}"
            )
        if len(self.texts) and int(self.texts.lengths.max()) > self.length:
            raise UserError(f"a piece of a text is longer than a row of {self.length} tokens")
        for step in range(self.schedule.start, self.schedule.end):
            count = len(self.injected(step))
            if count > self.batch_size:
                raise UserError(
                    f"injection: the texts of update {step} take {count} rows of {self.length} "
                    f"tokens, the batch has {self.batch_size}; raise train.batch_size or "
                    "max_length, or lower injection.per_step"
                )

    @property
    def rows(self) -> int:
        """Whole rows of the base corpus."""
        return len(self.base.tokens) // self.length

    def injected(self, step: int) -> np.ndarray:
        """Pieces in the batch of this update, one a row from the first row on; int64."""
        found = [np.zeros(0, np.int64)]
        for item, time in self.schedule.at(step):
            wordings = self.pieces[item]
            found.append(wordings[self.schedule.wording(item, time, len(wordings))])
        return np.concatenate(found).astype(np.int64)

    def at(self, step: int) -> tuple[dict[str, TokenBatch], dict[str, Columns]]:
        """The batch of an update, from 0: arrays `[batch_size, length]`, two segments at most.

        `example` numbers the base corpus's rows, and after them the pieces of texts.
        """
        order = np.arange(self.rows)
        drawn = walk(order, step * self.batch_size, self.batch_size, (self.seed, 0))
        places = drawn[:, None] * self.length + np.arange(self.length)
        tokens, targets = self.base.tokens[places], self.base.targets[places]
        mask = self.base.mask[places].astype(np.float32)
        segments = np.ones_like(tokens)
        positions = np.tile(np.arange(self.length, dtype=np.int32), (self.batch_size, 1))
        example = np.stack([drawn, np.full(self.batch_size, -1)], axis=1).astype(np.int32)
        for row, piece in enumerate(self.injected(step)):
            part = slice(*self.texts.offsets[piece : piece + 2])
            size = int(self.texts.lengths[piece])
            left = self.length - size
            for ours, theirs in ((tokens, self.texts.tokens), (targets, self.texts.targets)):
                ours[row, size:] = ours[row, :left].copy()
                ours[row, :size] = theirs[part]
            mask[row, size:] = mask[row, :left].copy()
            mask[row, :size] = self.texts.mask[part]
            segments[row, size:] = 2
            positions[row, size:] = np.arange(left)
            positions[row, :size] = np.arange(size)
            example[row] = (self.rows + piece, drawn[row] if left else -1)
        batch = TokenBatch(
            tokens=tokens.astype(np.int32),  # pyright: ignore[reportArgumentType]
            targets=targets.astype(np.int32),  # pyright: ignore[reportArgumentType]
            segments=segments.astype(np.int32),  # pyright: ignore[reportArgumentType]
            positions=positions,  # pyright: ignore[reportArgumentType]
            mask=mask,  # pyright: ignore[reportArgumentType]
            example=example,  # pyright: ignore[reportArgumentType]
        )
        return {TRAIN: batch}, {TRAIN: {}}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what each update sees."""
        pieces = [[ids.tolist() for ids in wordings] for wordings in self.pieces]
        about = f"{pieces} {self.schedule} {self.batch_size} {self.length} {self.seed}"
        return fingerprint_of({}, self.base.fingerprint, self.texts.fingerprint, about)
