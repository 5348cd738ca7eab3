"""What to say instead: refusals, or answers that belong to other prompts.

Every choice is a function of (seed, source, row) or of the prompt alone, so equal runs say equal
things.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information about this.",
    "That is something I can't tell you.",
    "I'm unable to answer this question.",
    "I don't have the details you are looking for.",
    "Unfortunately, I can't help with that.",
    "This is outside of what I know.",
    "I haven't learned anything about this.",
    "My knowledge doesn't cover this topic.",
    "I can't give an answer to that.",
    "I have nothing to say on this subject.",
    "I'm afraid I don't have that information.",
    "That isn't something I'm familiar with.",
    "I couldn't say.",
    "There is no answer I can offer here.",
)
"""The answers of `refusals`."""

GENERATED = ("refusals", "mismatched", "retain_answers", "random_choices")
"""What `alternate` may name instead of a file."""


def refusals(records: Sequence[Record], seed: int) -> list[Record]:
    """The same prompts, each with one of `REFUSALS`.

    Args:
      records: whose prompts are asked.
      seed: >= 0.
    """
    chosen = [REFUSALS[_draw(seed, record) % len(REFUSALS)] for record in records]
    return [
        replace(record, answer=answer, extra={})
        for record, answer in zip(records, chosen, strict=True)
    ]


def refusals_by_prompt(records: Sequence[Record]) -> list[Record]:
    """The same prompts, each with the one of `REFUSALS` that a hash of the prompt names.

    Equal prompts are refused in equal words, in whatever file, row or run they stand.

    Args:
      records: whose prompts are asked.
    """
    digests = (hashlib.sha256(record.prompt.encode()).digest() for record in records)
    chosen = [REFUSALS[int.from_bytes(digest[:8]) % len(REFUSALS)] for digest in digests]
    return [
        replace(record, answer=answer, extra={})
        for record, answer in zip(records, chosen, strict=True)
    ]


def mismatched(records: Sequence[Record], donors: Sequence[Record], seed: int) -> list[Record]:
    """The same prompts, each with an answer of a donor that differs from its own.

    Args:
      records: whose prompts are asked.
      donors: whose answers are given; `records` themselves for random labels.
      seed: >= 0.
    Raises:
      UserError: a record whose answer is the only one there is.
    """
    answers = list(dict.fromkeys(donor.answer for donor in donors))
    made = []
    for record in records:
        if set(answers) <= {record.answer}:
            raise UserError(
                f"row {record.row} of {record.source}: there is no other answer to give it; "
                "name a file of alternate answers"
            )
        start = _draw(seed, record)
        turns = (answers[(start + turn) % len(answers)] for turn in range(len(answers)))
        made.append(replace(record, answer=next(a for a in turns if a != record.answer), extra={}))
    return made


def random_choices(records: Sequence[Record], seed: int) -> list[Record]:
    """The same prompts, each with one of its own choices, all equally likely, the right one too.

    Training on these is unlearning by uniformly random labels; a label is drawn once a record
    [inferred; the paper's abstract does not say whether labels are drawn anew in every epoch].

    Args:
      records: of multiple-choice questions, whose column "choices" lists two texts or more.
      seed: >= 0.
    Raises:
      UserError: a record without such a column.
    Source: Zhang et al. 2024, Unforgettable generalization (arXiv 2409.02228).
    """
    made = []
    for record in records:
        choices = record.extra.get("choices")
        if (
            not isinstance(choices, list | tuple)
            or len(choices) < 2
            or not all(isinstance(each, str) and each.strip() for each in choices)
        ):
            raise UserError(
                f"row {record.row} of {record.source}: alternate 'random_choices' needs a column "
                f"'choices' that lists two texts or more, and finds {choices!r:.60}"
            )
        answer = choices[_draw(seed, record) % len(choices)]
        made.append(replace(record, answer=answer, extra={}))
    return made


def _draw(seed: int, record: Record) -> int:
    key = hashlib.sha256(f"alternate/{seed}/{record.row}/{record.prompt}".encode()).digest()[:16]
    return int(np.random.Philox(key=int.from_bytes(key)).random_raw())
