"""Questions with answers to choose from, from any file that has a column for each part."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jaxforget.data.sources import DataSource, Placed, load_rows, named, text_in
from jaxforget.engine.errors import UserError, did_you_mean

LETTERS = string.ascii_uppercase

_QUESTIONS = ("question", "prompt", "query")
_CHOICES = ("choices", "options")
_ANSWERS = ("answer", "label", "answerKey", "target")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      text: the question.
      choices: two or more, as text.
      correct: indices into `choices`; at least one, and not all.
      row: 0-based index within its file.
      source: file or dataset id, for messages.
      context: stands before the question: a header, worked examples.
      extra: every other column as it was read.
    """

    text: str
    choices: tuple[str, ...]
    correct: tuple[int, ...]
    row: int
    source: str
    context: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ChoiceData:
    """One set of multiple-choice questions, as a configuration names it.

    Attributes:
      path, name, split, rows, format: as in `DataSource`.
      columns: which column is the `question`, which holds the `choices` (a list, or the names of
        several columns of one choice each), and which the `answer`: the index from 0 or the
        letter of the right one, its text, or a list of 0 and 1 that marks the right ones. Found
        by themselves: question, prompt or query; choices, options, or the columns A, B, C, ..;
        answer, label, answerKey or target. Choices may be a mapping with lists `text` and
        `label`, whose labels the answer then names.
      header: stands before every question, with its own line breaks.
    """

    path: str
    name: str | None = None
    split: str = "train"
    columns: Mapping[Literal["question", "choices", "answer"], str | tuple[str, ...]] = field(
        default_factory=dict
    )
    rows: str | None = None
    format: Literal["auto", "json", "parquet", "hub"] = "auto"
    header: str = ""


type ChoiceSource = Annotated[ChoiceData, named("path")]
"""`ChoiceData` in a configuration, where a bare string is its path."""


def load_questions(source: ChoiceData) -> list[Question]:
    """Read the questions a source names, in file order; at least one.

    Raises:
      UserError: as `load_records`; a row with fewer than two choices, or whose answer names none
        of them or may name either of two.
    """
    plain = DataSource(
        source.path, source.name, source.split, rows=source.rows, format=source.format
    )
    label, placed = load_rows(plain)
    columns = _columns(source, placed[0].row, label)
    return [_question(each, *columns, source.header, label) for each in placed]


def _columns(source: ChoiceData, row: Mapping[str, Any], label: str) -> tuple[str, Any, str]:
    """Names of the columns of question, choices (one or several) and answer."""
    chosen = dict(source.columns)
    for key, given in chosen.items():
        for column in (given,) if isinstance(given, str) else given:
            if column not in row:
                raise UserError(
                    f"{label}: columns.{key} is {column!r}. {did_you_mean(column, row)}"
                )
    for key in ("question", "answer"):
        if not isinstance(chosen.get(key, ""), str):
            raise UserError(f"{label}: columns.{key} must be one column")
    lettered = tuple(letter for letter in LETTERS if letter in row)
    found = {
        "question": chosen.get("question") or _first(_QUESTIONS, row),
        "choices": chosen.get("choices") or _first(_CHOICES, row) or lettered,
        "answer": chosen.get("answer") or _first(_ANSWERS, row),
    }
    for key, column in found.items():
        if not column:
            raise UserError(
                f"{label}: no column for the {key}; set `columns: {{{key}: NAME}}`. "
                f"Columns there are: {', '.join(sorted(row)) or 'none'}."
            )
    return found["question"], found["choices"], found["answer"]  # pyright: ignore[reportReturnType]


def _first(names: Sequence[str], row: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in row), None)


def _question(
    placed: Placed, question: str, choices: Any, answer: str, header: str, source: str
) -> Question:
    row, index, where = placed
    text = text_in(row, question, where)
    if not text.strip():
        raise UserError(f"{where}: {question!r} is blank")
    texts, labels = _choices(row, choices, where)
    if answer not in row:
        raise UserError(f"{where}: no column {answer!r}. {did_you_mean(answer, row)}")
    taken = {question, answer, *((choices,) if isinstance(choices, str) else choices)}
    extra = {key: value for key, value in row.items() if key not in taken}
    correct = correct_ones(row[answer], texts, labels, f"{where}: {answer!r}")
    return Question(text, texts, correct, index, source, header, extra)


def _choices(
    row: Mapping[str, Any], choices: Any, where: str
) -> tuple[tuple[str, ...], Sequence[str] | None]:
    """(texts, their labels where the file gives them)."""
    labels = None
    if isinstance(choices, str):
        value = row.get(choices)
        if isinstance(value, Mapping) and {"text", "label"} <= set(value):
            value, labels = value["text"], value["label"]
    else:
        value = [row.get(column) for column in choices]
    texts: tuple[Any, ...] = tuple(value) if isinstance(value, list | tuple) else ()
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(
            f"{where}: {choices!r} must be two or more non-blank texts, is {value!r:.80}"
        )
    return texts, labels


def correct_ones(
    answer: Any, choices: Sequence[str], labels: Sequence[str] | None, where: str
) -> tuple[int, ...]:
    """Indices of the right choices.

    Args:
      answer: index from 0, letter, label, text of a choice, or list of 0 and 1.
      choices: their texts.
      labels: what the file calls them, or None: letters.
      where: begins messages.
    Raises:
      UserError: nothing that names a choice, or something that names two.
    """
    if isinstance(answer, list | tuple):
        right = tuple(index for index, mark in enumerate(answer) if mark == 1)
        marks_fit = len(answer) == len(choices) and all(mark in (0, 1) for mark in answer)
        if not marks_fit or not 0 < len(right) < len(choices):
            raise UserError(f"{where} is {answer!r:.60}; marks must be 0 or 1, one a choice")
        return right
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(choices):
            raise UserError(f"{where} is {answer}; allowed is 0 to {len(choices) - 1}")
        return (answer,)
    found = _named_by(answer, choices, labels) if isinstance(answer, str) else set()
    if len(found) == 1:
        return (found.pop(),)
    why = "names none of" if not found else "may name several of"
    raise UserError(f"{where} is {answer!r:.60}, which {why} the {len(choices)} choices")


def _named_by(answer: str, choices: Sequence[str], labels: Sequence[str] | None) -> set[int]:
    """Every choice that a text may mean: by its label, or by being its text."""
    given = answer.strip()
    names = list(labels) if labels is not None else list(LETTERS[: len(choices)])
    bare = match.group(1) if (match := re.fullmatch(r"\(?(\w+)[).:]*", given)) else given
    by_label = {index for index, name in enumerate(names) if str(name).strip() == bare}
    by_text = {index for index, choice in enumerate(choices) if choice.strip() == given}
    if labels is None and not by_label and bare.isdigit() and int(bare) < len(choices):
        by_label = {int(bare)}
    return by_label | by_text
