"""What one example says before it becomes tokens, and checks between sets of examples."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from jaxforget.engine.errors import UserError

log = logging.getLogger(__name__)

type Alternative = Literal["paraphrased_answer", "perturbed_answer", "paraphrased_question"]


@dataclass(frozen=True)
class Record:
    """One example as text.

    Attributes:
      prompt: what the model is given; "" for plain text, which is learned from its first token.
      answer: what the model is scored on; never blank.
      row: 0-based index within its file, whatever slice of the file was read.
      source: file or dataset id, for messages.
      extra: every other column as it was read, e.g. `paraphrased_question` (str),
        `paraphrased_answer` (str or list), `perturbed_answer` (list).
    """

    prompt: str
    answer: str
    row: int
    source: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


def variants(records: Sequence[Record], key: Alternative) -> tuple[list[Record], np.ndarray]:
    """One record per alternative wording held in `extra[key]`.

    Args:
      records: every one must hold `key` as a string or a non-empty list of strings.
      key: "paraphrased_question" replaces the prompt, the other two the answer.
    Returns:
      The expanded records, in order, and int64 `[len(expanded)]`: for each the index of its
      original in `records`. Alternatives of one record stay together.
    Raises:
      UserError: a record without `key`, or whose value is not text.
    """
    expanded, owner = [], []
    for index, record in enumerate(records):
        for text in _alternatives(record, key):
            changed = {"prompt" if key == "paraphrased_question" else "answer": text}
            expanded.append(replace(record, extra={}, **changed))
            owner.append(index)
    return expanded, np.asarray(owner, np.int64)


def _alternatives(record: Record, key: str) -> list[str]:
    where = f"row {record.row} of {record.source}"
    if key not in record.extra:
        have = ", ".join(sorted(record.extra)) or "none"
        raise UserError(f"{where}: no column {key!r}. Further columns of this row: {have}.")
    value = record.extra[key]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise UserError(f"{where}: {key!r} must be text or a list of texts, is {value!r:.80}")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: {key!r} holds {text!r:.80}; only non-blank text is allowed")
    return texts


def overlap(forget: Sequence[Record], retain: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Pairs (of `forget`, of `retain`) with the same prompt and answer, in order of `forget`."""
    kept = {(record.prompt, record.answer): record for record in reversed(retain)}
    pairs = ((record, kept.get((record.prompt, record.answer))) for record in forget)
    return [(record, twin) for record, twin in pairs if twin is not None]


def refuse_overlap(forget: Sequence[Record], retain: Sequence[Record]) -> None:
    """Raise UserError where a row to forget is also a row to retain: neither could be judged."""
    pairs = overlap(forget, retain)
    if not pairs:
        return
    first, twin = pairs[0]
    raise UserError(
        f"{len(pairs)} of {len(forget)} rows to forget are also in the retain set; the first is "
        f"row {first.row} of {first.source} = row {twin.row} of {twin.source}: "
        f"{first.prompt or first.answer!r:.80}. Remove them from one of the two sets "
        "(`rows: 'start:stop'` reads a slice of a file)."
    )


def warn_of_repeats(records: Sequence[Record]) -> int:
    """Log one warning when (prompt, answer) pairs repeat; returns how many rows repeat one."""
    repeats = len(records) - len({(record.prompt, record.answer) for record in records})
    if repeats:
        log.warning(
            "%s: %d of %d rows repeat an earlier prompt and answer; they are kept and weigh more",
            records[0].source,
            repeats,
            len(records),
        )
    return repeats
