"""Which examples of every role meet in one step: pure functions of the step.

An item is one place of the anchor's walk (the forget set's, for unlearning) with what the other
roles give to it. How many items an epoch has differs between pairings, by a factor of eighteen on
the data of the modular one: compare methods at equal optimizer steps (`train.steps`), not epochs.
"""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from jaxforget.engine.errors import UserError

type Pairing = Literal[
    "cyclic", "longest", "one_to_one", "sequential", "proportional", "alternate", "modular"
]
"""How roles meet.

"cyclic": an epoch is the anchor's; the others go round in their own random orders, across epochs,
so that each of their examples is seen equally often.
"longest": the same, but an epoch is that of the largest set, and the smaller ones go round.
"one_to_one": every other example is drawn at random, at every access.
"sequential": anchor example i always meets example i of the others (modulo their size).
"proportional": each step holds `ratio` times as many examples of the others as of the anchor; by
default in proportion to the sizes, so that one epoch shows every example of every role once.
"alternate": even steps hold the anchor alone, odd steps the others alone; shapes are fixed, so the
rows of the silent side are computed empty.
"modular": by entity, see `modular_items`.
"""

PAIRINGS: tuple[str, ...] = get_args(Pairing.__value__)
type Entities = tuple[str | None, ...]
"""Whom each example of a set is about; None: nobody in particular."""


@dataclass(frozen=True)
class Walks:
    """What the pairings read.

    Attributes:
      counts: examples of every role.
      anchor: the role that defines the epoch.
      seed: of all orders.
      pairing: see `Pairing`.
      ratio: of "proportional"; None: the sizes'.
      entities: of the anchor and the retain set, for "modular".
    """

    counts: Mapping[str, int]
    anchor: str
    seed: int
    pairing: Pairing
    ratio: float | None = None
    entities: Mapping[str, Entities] | None = None

    @functools.cached_property
    def items(self) -> int:
        """Items of one epoch."""
        if self.pairing == "longest":
            return max(self.counts.values())
        if self.pairing == "modular":
            return len(self._modular(0))
        return self.counts[self.anchor]

    def steps(self, batch_size: int) -> int:
        """Steps of one epoch."""
        return math.ceil(self.items / batch_size) * (2 if self.pairing == "alternate" else 1)

    def examples(self, step: int, batch_size: int) -> dict[str, np.ndarray]:
        """Indices into every role's set for a step; int64."""
        turn, phase = divmod(step, 2) if self.pairing == "alternate" else (step, None)
        epoch, within = divmod(turn, math.ceil(self.items / batch_size))
        begin = within * batch_size
        taken = min(batch_size, self.items - begin)
        start = epoch * self.items + begin
        if self.pairing == "modular":
            return self._modular_step(epoch, begin, start, taken)
        found = {role: self._of(role, start, taken) for role in self.counts}
        if phase is not None:
            silent = [role for role in self.counts if (role == self.anchor) == bool(phase)]
            found |= {role: np.empty(0, np.int64) for role in silent}
        return found

    def _of(self, role: str, start: int, taken: int) -> np.ndarray:
        count = self.counts[role]
        if role == self.anchor or self.pairing in ("cyclic", "longest", "alternate"):
            return going_round(self.seed, role, count, start, taken)
        if self.pairing == "proportional":
            share = self._share(role)
            first, last = math.floor(start * share), math.floor((start + taken) * share)
            return going_round(self.seed, role, count, first, last - first)
        if self.pairing == "one_to_one":
            return drawn(self.seed, role, count, start, taken)
        return going_round(self.seed, self.anchor, self.items, start, taken) % count

    def _share(self, role: str) -> Fraction:
        if self.ratio is not None:
            return Fraction(self.ratio).limit_denominator(10**6)
        return Fraction(self.counts[role], self.counts[self.anchor])

    def _modular(self, epoch: int) -> np.ndarray:
        assert self.entities is not None
        forget, retain = self.entities[self.anchor], self.entities["retain"]
        return modular_items(forget, retain, self.seed, epoch)

    def _modular_step(self, epoch: int, begin: int, start: int, taken: int) -> dict:
        pairs = self._modular(epoch)[begin : begin + taken]
        found = {self.anchor: pairs[:, 0], "retain": pairs[:, 1]}
        for role in self.counts:
            if role not in found:
                found[role] = going_round(self.seed, role, self.counts[role], start, taken)
        return found


@functools.lru_cache(maxsize=4)
def modular_items(forget: Entities, retain: Entities, seed: int, epoch: int) -> np.ndarray:
    """Pairs (forget example, retain example) of one epoch of MELU's modular sampling.

    For every entity its forget examples meet its own neighbours, the shorter list going round;
    every general retain example (entity None) meets a random forget example. Pairs are shuffled,
    members stay together.

    Args:
      forget: whom each forget example is about; none may be None.
      retain: the same for the retain set, whose examples are direct or indirect neighbours.
      seed, epoch: of the orders.
    Returns:
      int64 `[items, 2]`; items = sum over entities of the longer list + general examples.
    Raises:
      UserError: a forget example without entity, an entity without neighbours, a retain example
        about somebody who is not to be forgotten.
    Source: arXiv 2509.05316.
    """
    mine, theirs = _places(forget), _places(retain)
    _refuse_strangers(forget, mine, theirs, retain)
    pairs = []
    for entity, own in mine.items():
        neighbours = theirs[entity]
        turns = np.arange(max(len(own), len(neighbours)))
        left = own[order(seed, f"modular forget {entity}", epoch, len(own))]
        right = neighbours[order(seed, f"modular retain {entity}", epoch, len(neighbours))]
        pairs.append(np.stack([left[turns % len(own)], right[turns % len(neighbours)]], axis=1))
    general = theirs.get(None, np.empty(0, np.int64))
    random = drawn(seed, "modular general", len(forget), epoch * len(general), len(general))
    pairs.append(np.stack([random, general], axis=1))
    together = np.concatenate(pairs)
    shuffled = together[order(seed, "modular", epoch, len(together))]
    shuffled.setflags(write=False)
    return shuffled


def _places(entities: Entities) -> dict[str | None, np.ndarray]:
    found: dict[str | None, list[int]] = {}
    for place, entity in enumerate(entities):
        found.setdefault(entity, []).append(place)
    return {entity: np.asarray(places, np.int64) for entity, places in found.items()}


def _refuse_strangers(
    forget: Entities, mine: Mapping, theirs: Mapping, retain: Sequence[str | None]
) -> None:
    if None in mine:
        raise UserError(f"pairing modular: example {mine[None][0]} of the forget set has no entity")
    lonely = [entity for entity in mine if entity not in theirs]
    if lonely:
        raise UserError(
            f"pairing modular: {len(lonely)} of {len(mine)} entities to forget have no neighbours "
            f"in the retain set, e.g. {lonely[0]!r}"
        )
    for place, entity in enumerate(retain):
        if entity is not None and entity not in mine:
            raise UserError(
                f"pairing modular: example {place} of the retain set is about {entity!r}, whom no "
                "forget example is about; leave its entity empty where it is general"
            )


def going_round(seed: int, role: str, count: int, start: int, taken: int) -> np.ndarray:
    """Places start .. start + taken of a role's endless walk, in a new order every round."""
    rounds, places = np.divmod(np.arange(start, start + taken), count)
    found = np.empty(taken, np.int64)
    for each in np.unique(rounds).tolist():
        here = rounds == each
        found[here] = order(seed, role, each, count)[places[here]]
    return found


def drawn(seed: int, role: str, count: int, start: int, taken: int) -> np.ndarray:
    """Independent uniform draws number start .. start + taken; int64 in [0, count)."""
    words = np.random.Philox(key=_key(f"drawn/{seed}/{role}"))
    words.advance(start // 4)  # a block of Philox is four words
    raw = words.random_raw(taken + start % 4)[start % 4 :] if taken else np.empty(0, np.uint64)
    # the top bits as a fraction of the count: no modulo bias worth the name
    return ((raw >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)


@functools.lru_cache(maxsize=64)
def order(seed: int, role: str, epoch: int, count: int) -> np.ndarray:
    """The order of a role's examples in one epoch: int64 `[count]`, a permutation.

    Drawn from raw Philox words, whose stream NumPy keeps the same in every version.
    """
    words = np.random.Philox(key=_key(f"{seed}/{role}/{epoch}")).random_raw(count)
    found = np.argsort(words, kind="stable")
    found.setflags(write=False)
    return found


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])
