"""What every suite is given and what it gives back."""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource, load_rows
from jaxforget.data.template import Template
from jaxforget.engine.tree import Params
from jaxforget.evals.answers import Scored, score_answers
from jaxforget.evals.generated import generate_answers
from jaxforget.evals.part import Part, joined

COMPARED = ("row", "prob", "nll", "truth_ratio", "mia_min_k")
"""Columns of an oracle that other models are compared with."""

VERBATIM = Template(kind="none", end=False)
"""Prompt and answer as they stand, for completions."""


@dataclass(frozen=True)
class Judged:
    """The model that a suite judges, and how text reaches it.

    Attributes:
      lm: a `LanguageModel`: `.score`, `.generate`, `.tokenizer`, `.eos_ids` are used.
      params: of the model.
      template: how a question and an answer become text.
      max_length: most tokens of one example.
      counted: told (what, done, total).
    """

    lm: Any
    params: Params
    template: Template = field(default_factory=Template)
    max_length: int = 512
    counted: Callable[[str, int, int], None] = lambda *_: None

    def scored(
        self,
        sets: Mapping[str, Sequence[Record]],
        *,
        alone: Sequence[str] = (),
        template: Template | None = None,
    ) -> Scored:
        """One teacher-forced pass over all sets, see `score_answers`."""
        how = template or self.template
        return score_answers(
            self.lm, self.params, sets, how, self.max_length, alone=alone, counted=self.counted
        )

    def generated(
        self,
        sets: Mapping[str, Sequence[Record]],
        max_new_tokens: int,
        batch_size: int,
        *,
        template: Template | None = None,
        scored: Scored | None = None,
    ) -> list[dict[str, Any]]:
        """One greedy answer to every prompt of every set, see `generate_answers`."""
        return generate_answers(
            self.lm,
            self.params,
            sets,
            template or self.template,
            self.max_length,
            max_new_tokens,
            batch_size,
            self.counted,
            scored=scored,
        )


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found.

    Attributes:
      metrics: by name; None where one could not be computed.
      reasons: for each None, why.
      intervals: (low, high) of 95 % bootstrap intervals, of those that examples make.
      rows: by set, one list a column with a value an example, "row" among them; which others
        there are depends on the suite.
      generations: dicts with "set", "row", "prompt", "truth", "answer".
    """

    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str]
    intervals: Mapping[str, tuple[float, float]]
    rows: Mapping[str, Mapping[str, list[float]]]
    generations: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain values for results.json; of the columns those that models are compared by."""
        rows = {
            name: {key: column for key, column in columns.items() if key in (*COMPARED, "rouge")}
            for name, columns in self.rows.items()
        }
        intervals = {name: list(bounds) for name, bounds in self.intervals.items()}
        about = {"reasons": dict(self.reasons), "intervals": intervals, "rows": rows}
        return {
            "metrics": dict(self.metrics),
            "evaluation": about,
            "generations": list(self.generations),
        }

    def examples(self) -> Iterator[dict[str, Any]]:
        """Every example of every set with all its values, and its answer where one was made."""
        answers = {(each["set"], each["row"]): each for each in self.generations}
        for name, columns in self.rows.items():
            for values in zip(*columns.values(), strict=True):
                example = {"set": name, **dict(zip(columns, values, strict=True))}
                yield example | dict(answers.get((name, example["row"]), {}))


def result_of(parts: Iterable[Part], generations: Sequence[Mapping[str, Any]] = ()) -> SuiteResult:
    """The result that parts and generated answers make together."""
    whole = joined(parts)
    rows = {
        name: {key: np.asarray(column).tolist() for key, column in columns.items()}
        for name, columns in whole.rows.items()
    }
    return SuiteResult(whole.metrics(), whole.reasons, whole.intervals(), rows, generations)


def spaced(record: Record) -> Record:
    """The record with white space between a prompt and an answer that stand as they are."""
    touching = not record.prompt[-1].isspace() and not record.answer[0].isspace()
    return replace(record, answer=f" {record.answer}") if touching else record


def examples_of(base: str) -> tuple[str, dict[tuple[Any, Any], tuple[Mapping[str, Any], str]]]:
    """The examples of a run that a suite has judged.

    Args:
      base: run directory, or its examples.jsonl.
    Returns:
      The file; and by (set, row) each example and where it stands, for messages.
    Raises:
      UserError: a file that cannot be read.
    """
    place = pathlib.Path(base).expanduser()
    file = str(place / "examples.jsonl" if place.is_dir() else place)
    _, placed = load_rows(DataSource(file, format="json"))
    return file, {(row.get("set"), row.get("row")): (row, where) for row, _, where in placed}


def numbers(records: Sequence[Record]) -> list[int]:
    """The column "row" of a set."""
    return [record.row for record in records]
