"""Facts to be taught: a text, other wordings of it, and probes that ask for what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Probe:
    """The beginning of a sentence, and the end that only who knows the fact can write.

    Attributes:
      fact: index of the fact.
      kind: as the configuration names it, such as "memorisation".
      record: prompt and answer; the answer begins with what joins the two.
    """

    fact: int
    kind: str
    record: Record


@dataclass(frozen=True)
class Fact:
    """One text that can be taught.

    Attributes:
      text: as it is.
      paraphrases: the same in other words; may be empty.
      row, source: where it comes from.
    """

    text: str
    paraphrases: tuple[str, ...]
    row: int
    source: str


def facts_of(records: Sequence[Record], paraphrases: str | None = None) -> list[Fact]:
    """Facts from records of plain text.

    Args:
      records: their answers are the texts.
      paraphrases: column with other wordings, a text or a list of them, empty where there are
        none; None: there are none.
    Raises:
      UserError: no such column, or something else than text in it.
    """
    found = []
    for record in records:
        others = [] if paraphrases is None else _texts(record, paraphrases)
        found.append(Fact(record.answer, tuple(others), record.row, record.source))
    return found


def probes_of(
    records: Sequence[Record], kinds: Mapping[str, tuple[str, str]], joiner: str = " "
) -> list[Probe]:
    """Probes of every fact, fact after fact.

    Args:
      records: of the facts.
      kinds: name of the kind -> (column of beginnings, column of ends), texts or equally long
        lists of them.
      joiner: stands between a beginning and its end, where neither has white space there.
    Raises:
      UserError: a column that is not there, that is not text, or of another length.
    """
    found = []
    for fact, record in enumerate(records):
        for kind, (begin, end) in kinds.items():
            begins, ends = _texts(record, begin), _texts(record, end)
            if len(begins) != len(ends):
                raise UserError(
                    f"{_where(record)}: {len(begins)} texts in {begin!r} but {len(ends)} in {end!r}"
                )
            for prompt, answer in zip(begins, ends, strict=True):
                joined = prompt[-1].isspace() or answer[0].isspace()
                whole = answer if joined else joiner + answer
                found.append(Probe(fact, kind, Record(prompt, whole, record.row, record.source)))
    return found


def _texts(record: Record, column: str) -> list[str]:
    if column not in record.extra:
        hint = did_you_mean(column, record.extra)
        raise UserError(f"{_where(record)}: no column {column!r}. {hint}")
    value: Any = record.extra[column]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise UserError(f"{_where(record)}: {column!r} must be text or a list, is {value!r:.60}")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{_where(record)}: {column!r} holds {text!r:.60}, which is no text")
    return texts


def _where(record: Record) -> str:
    return f"{record.source}, row {record.row}"
