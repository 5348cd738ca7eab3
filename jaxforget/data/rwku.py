"""RWKU's files: which row asks what, and of whom.

One row of columns a set, as the benchmark publishes them; every row is about one person, named in
`subject` (or in `target`, with a number before the name).
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxforget.data.choices import LETTERS, Question, correct_ones
from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource, Placed, load_rows, text_in
from jaxforget.engine.errors import UserError, did_you_mean

FORGET = ("forget_level1", "forget_level2", "forget_level3")
NEIGHBOR = ("neighbor_level1", "neighbor_level2")
MEMBERS, OTHERS = "forget_mia", "retain_mia"
GENERAL, REASONING, TRUTHFULNESS = "retain_mmlu", "retain_bbh", "truthful"
FACTUALITY, FLUENCY = "triviaqa", "fluency"

SETS = (
    *FORGET,
    *NEIGHBOR,
    MEMBERS,
    OTHERS,
    GENERAL,
    REASONING,
    TRUTHFULNESS,
    FACTUALITY,
    FLUENCY,
)
"""Every set by the name of its file."""

_ENDINGS = ("json", "jsonl", "parquet")


def files_in(folder: str) -> dict[str, DataSource]:
    """The sets that a folder holds, as `forget_level1.json`, `forget_level1.jsonl.gz` and so on.

    Raises:
      UserError: no such folder, none of the files in it, or one of them twice.
    """
    place = pathlib.Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"evaluate.folder: there is no folder {folder}")
    found: dict[str, DataSource] = {}
    for file in sorted(place.iterdir()):
        name, *parts = file.name.split(".")
        if name not in SETS or not set(_ENDINGS) & set(parts):
            continue
        if name in found:
            raise UserError(f"evaluate.folder: {found[name].path} and {file} both hold {name}")
        found[name] = DataSource(str(file))
    if not found:
        raise UserError(f"evaluate.folder: {folder} holds none of {', '.join(SETS)}")
    return found


def rows_about(source: DataSource, subject: str | None) -> tuple[str, list[Placed]]:
    """(the source's name, its rows about a person; all rows where None is asked for).

    Raises:
      UserError: as `load_rows`; no row about the person.
    """
    label, placed = load_rows(source)
    if subject is None:
        return label, placed
    chosen = [each for each in placed if person_of(each.row) == subject]
    if not chosen:
        known = {person for each in placed if (person := person_of(each.row)) is not None}
        known = known if len(known) <= 20 else set(sorted(known)[:20])
        raise UserError(f"{label}: no row about {subject!r}. {did_you_mean(subject, known)}")
    return label, chosen


def person_of(row: Mapping[str, Any]) -> str | None:
    """Whom a row is about, without the number of the person; None where it does not say."""
    told = row.get("subject", row.get("target"))
    if not isinstance(told, str):
        return None
    return re.sub(r"^\d+_", "", told).replace("_", " ") if "subject" not in row else told


def asked(
    label: str,
    placed: Sequence[Placed],
    instruction: str,
    columns: tuple[str, str] = ("query", "answer"),
) -> list[Record]:
    """Rows of a question and an answer as records whose prompt begins with an instruction."""
    question, answer = columns
    found = []
    for row, index, where in placed:
        prompt = f"{instruction}\n{text_in(row, question, where)}"
        taken = (question, answer)
        extra = {key: value for key, value in row.items() if key not in taken}
        found.append(Record(prompt, text_in(row, answer, where), index, label, extra))
    return found


def plain_texts(label: str, placed: Sequence[Placed]) -> list[Record]:
    """Rows of a `text` as plain text."""
    return [Record("", text_in(row, "text", where), index, label) for row, index, where in placed]


def attack_of(record: Record) -> str:
    """The kind of an adversarial question, in one word: languages are one kind."""
    kind = str(record.extra.get("type", "other")).partition("(")[0]
    return re.sub(r"[^a-z]+", "_", kind.strip().lower())


def examined(label: str, placed: Sequence[Placed], shots: int) -> list[Question]:
    """Rows of MMLU, with worked examples of the same subject before them.

    Args:
      label: of the source.
      placed: rows with `question`, `choices`, `answer`, `task` and `examples`.
      shots: most examples, >= 0.
    """
    found = []
    for row, index, where in placed:
        choices = _choices(row.get("choices"), where)
        right = correct_ones(row.get("answer"), choices, None, f"{where}: 'answer'")
        subject = str(row.get("task", "")).replace("_", " ")
        about = f"Multiple-choice questions with their answers{subject and f' on {subject}'}."
        examples = row.get("examples", [])
        if not isinstance(examples, list):
            raise UserError(f"{where}: 'examples' must be a list, is {examples!r:.60}")
        parts = [_worked(each, where) for each in examples[:shots]]
        context = "\n\n".join([about, *parts, ""])
        question = text_in(row, "question", where)
        found.append(Question(question, choices, right, index, label, context))
    return found


def _worked(example: Any, where: str) -> str:
    if not isinstance(example, Mapping):
        raise UserError(f"{where}: 'examples' must hold mappings, holds {example!r:.60}")
    choices = _choices(example.get("choices"), where)
    (right, *_) = correct_ones(example.get("answer"), choices, None, f"{where}: 'examples'")
    lines = [f"{a}. {b}" for a, b in zip(LETTERS, choices, strict=False)]
    return "\n".join([text_in(example, "question", where), *lines, f"Answer: {LETTERS[right]}"])


def _choices(value: Any, where: str) -> tuple[str, ...]:
    texts = tuple(value) if isinstance(value, list | tuple) else ()
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{where}: choices must be two or more non-blank texts, is {value!r:.60}")
    return texts


def truths(label: str, placed: Sequence[Placed], key: str) -> list[Question]:
    """Rows of TruthfulQA: `key` is "mc1_targets" (one right choice) or "mc2_targets" (several)."""
    found = []
    for row, index, where in placed:
        given = row.get(key)
        if not isinstance(given, Mapping):
            raise UserError(f"{where}: {key!r} must hold choices and labels, is {given!r:.60}")
        choices = _choices(given.get("choices"), where)
        right = correct_ones(given.get("labels"), choices, None, f"{where}: {key!r}")
        found.append(Question(text_in(row, "question", where), choices, right, index, label))
    return found


def reasoned(label: str, placed: Sequence[Placed], instruction: str) -> list[Record]:
    """Rows of BIG-Bench Hard, with their worked examples before them."""
    found = []
    for row, index, where in placed:
        parts = (text_in(row, "cot", where).strip(), instruction, text_in(row, "question", where))
        answer = text_in(row, "answer", where)
        found.append(Record("\n\n".join(parts), answer, index, label))
    return found


def trivia(label: str, placed: Sequence[Placed], instruction: str) -> list[Record]:
    """Rows of TriviaQA; every right wording is in `extra["answers"]`, the first is the answer."""
    found = []
    for row, index, where in placed:
        answers = row.get("answers")
        texts = answers if isinstance(answers, list) else []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where}: 'answers' must be a list of texts, is {answers!r:.60}")
        prompt = f"{instruction}\n{text_in(row, 'question', where)}"
        found.append(Record(prompt, texts[0], index, label, {"answers": texts}))
    return found


def instructed(label: str, placed: Sequence[Placed]) -> list[Record]:
    """Rows of an `instruction` that has no one answer."""
    return [
        Record(text_in(row, "instruction", where), "-", index, label)
        for row, index, where in placed
    ]
