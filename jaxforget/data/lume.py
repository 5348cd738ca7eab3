"""Documents to complete and questions about them, as LUME and SemEval-2025 task 4 publish them.

A row is a document, halved into a beginning and how it goes on, with a question and its answer; or
it is one of the two, as in the published files, whose `id` ends in "sc0" or "qa0".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource, Placed, load_rows, named, text_in
from jaxforget.engine.errors import UserError, did_you_mean

COMPLETION, QUESTION = "completion", "question"
PUBLISHED = ("id", "input", "output")
_KIND = re.compile(r"(sc|qa)\d*$")


@dataclass(frozen=True)
class LumeData:
    """One set of documents and questions, as a configuration names it.

    Attributes:
      path, name, split, rows, format: as in `DataSource`.
      columns: which column is the `text` (halved at the space nearest to its middle), the
        `question` and its `answer`, and the `task` whose scores stand apart; `text` may be left
        out, or `question` and `answer`. Found by themselves: text, question, answer and task; else
        the published files' id, input and output.
    """

    path: str
    name: str | None = None
    split: str = "train"
    columns: Mapping[Literal["text", "question", "answer", "task"], str] = field(
        default_factory=dict
    )
    rows: str | None = None
    format: Literal["auto", "json", "parquet", "hub"] = "auto"


type LumeSource = Annotated[LumeData, named("path")]
"""`LumeData` in a configuration, where a bare string is its path."""


@dataclass(frozen=True)
class Prompts:
    """What a set asks.

    Attributes:
      records: beginnings and questions with what should follow, by "completion" and "question".
      tasks: task of each record, "all" where the file names none.
    """

    records: Mapping[str, Sequence[Record]]
    tasks: Mapping[str, Sequence[str]]


def load_prompts(source: LumeData) -> Prompts:
    """Read the beginnings and questions that a source names, in file order; one of them at least.

    Raises:
      UserError: as `load_records`; a text of one word, or an `id` that is neither kind.
    """
    plain = DataSource(
        source.path, source.name, source.split, rows=source.rows, format=source.format
    )
    label, placed = load_rows(plain)
    columns = _columns(source, placed[0].row, label)
    records: dict[str, list[Record]] = {}
    tasks: dict[str, list[str]] = {}
    for each in placed:
        task = _task(each, columns.get("task"))
        for kind, record in _records(each, columns, label):
            records.setdefault(kind, []).append(record)
            tasks.setdefault(kind, []).append(task)
    return Prompts(records, tasks)


def _columns(source: LumeData, row: Mapping[str, Any], label: str) -> dict[str, str]:
    """The columns that are read by what they are; those of the published files as they are."""
    chosen = {str(key): column for key, column in source.columns.items()}
    for key, column in chosen.items():
        if column not in row:
            raise UserError(f"{label}: columns.{key} is {column!r}. {did_you_mean(column, row)}")
    if set(chosen) <= {"task"} and all(name in row for name in PUBLISHED):
        found = {name: name for name in PUBLISHED}
    elif set(chosen) <= {"task"}:
        found = {name: name for name in ("text", "question", "answer") if name in row}
    else:
        found = {}
    found |= chosen
    found |= {"task": "task"} if "task" in row and "task" not in found else {}
    if ("question" in found) != ("answer" in found):
        raise UserError(f"{label}: columns: `question` and `answer` need each other")
    if not {"id", "text", "question"} & set(found):
        raise UserError(
            f"{label}: no column to complete or to ask; set `columns: {{text: NAME}}`, or question "
            f"and answer. Columns there are: {', '.join(sorted(row)) or 'none'}."
        )
    return found


def _task(placed: Placed, column: str | None) -> str:
    if column is None:
        return "all"
    name = re.sub(r"\W+", "_", str(placed.row.get(column, "")).strip().lower()).strip("_")
    if not name:
        raise UserError(f"{placed.where}: {column!r} names no task")
    return name


def _records(placed: Placed, columns: Mapping[str, str], label: str) -> list[tuple[str, Record]]:
    row, index, where = placed
    if "id" in columns:
        found = _KIND.search(str(row.get("id")))
        if found is None:
            raise UserError(
                f"{where}: 'id' must end in sc or qa and a number, to be completed or answered; is "
                f"{row.get('id')!r:.60}"
            )
        kind = COMPLETION if found.group(1) == "sc" else QUESTION
        return [
            (kind, Record(_text(row, "input", where), _text(row, "output", where), index, label))
        ]
    made = []
    if "text" in columns:
        first, second = halves(_text(row, columns["text"], where), f"{where}: {columns['text']!r}")
        made.append((COMPLETION, Record(first, second, index, label)))
    if "question" in columns:
        asked, answer = (_text(row, columns[key], where) for key in ("question", "answer"))
        made.append((QUESTION, Record(asked, answer, index, label)))
    return made


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    text = text_in(row, column, where)
    if not text.strip():
        raise UserError(f"{where}: {column!r} is blank")
    return text


def halves(text: str, where: str = "text") -> tuple[str, str]:
    """A text cut where the white space begins that begins nearest to its middle.

    Returns:
      (beginning, how it goes on), which together are the text without outer space.
    Raises:
      UserError: a text of one word.
    """
    bare = text.strip()
    places = [found.start() for found in re.finditer(r"\s+", bare)]
    if not places:
        raise UserError(f"{where} is one word, which has no second half: {bare!r:.60}")
    cut = min(places, key=lambda place: abs(2 * place - len(bare)))
    return bare[:cut], bare[cut:]
