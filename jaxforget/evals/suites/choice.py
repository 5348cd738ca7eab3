"""Multiple choice by likelihood, as WMDP and MMLU are scored; any file of questions and choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from jaxforget.data.choices import ChoiceSource, Question, load_questions
from jaxforget.engine.errors import UserError
from jaxforget.evals.choices import choice_likelihoods, choice_part, forget_ratio, letter_part
from jaxforget.evals.membership import Rows
from jaxforget.evals.part import Part
from jaxforget.evals.suites.suite import Judged, SuiteResult, examples_of, result_of


@dataclass(frozen=True)
class ChoiceSuite:
    """The multiple-choice suite.

    Attributes:
      tasks: sets of questions, by the name that their metrics begin with.
      suite: "choice".
      base: run directory of the model before it forgot, judged by this suite with the same tasks:
        every task gets its forget ratio; None: none.
      letters: also show the choices under letters in the question, and score these letters.
      limit: questions used of each task; None: all.
    """

    tasks: Mapping[str, ChoiceSource]
    suite: Literal["choice"] = "choice"
    base: str | None = None
    letters: bool = False
    limit: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class ChoiceQuestions:
    """What the suite reads.

    Attributes:
      tasks: questions by task.
      before: by task, was each of them answered rightly before unlearning, `[n]` in [0, 1]; empty
        where no base is named.
    """

    tasks: Mapping[str, Sequence[Question]]
    before: Mapping[str, np.ndarray] = field(default_factory=dict)


def read(settings: ChoiceSuite) -> ChoiceQuestions:
    """The questions by task, and what the base knew of them.

    Raises:
      UserError: no task, a name that is no word, questions that cannot be read, or a base that
        was not asked them.
    """
    if not settings.tasks:
        raise UserError("evaluate.tasks: names no set of questions")
    for name in settings.tasks:
        if not name.isidentifier():
            raise UserError(f"evaluate.tasks: {name!r} must be one word, as metrics begin with it")
    tasks = {
        name: load_questions(source)[: settings.limit] for name, source in settings.tasks.items()
    }
    return ChoiceQuestions(tasks, {} if settings.base is None else _known(settings.base, tasks))


def _known(base: str, tasks: Mapping[str, Sequence[Question]]) -> dict[str, np.ndarray]:
    """Which questions the model before answered rightly, from the examples of its run."""
    file, known = examples_of(base)
    found = {}
    for name, questions in tasks.items():
        rows = [known.get((name, each.row), ({}, file))[0] for each in questions]
        hits = [row.get("correct") for row in rows]
        for question, row, hit in zip(questions, rows, hits, strict=True):
            if row.get("question") != question.text or not isinstance(hit, int | float):
                raise UserError(
                    f"evaluate.base: {file} does not say how row {question.row} of "
                    f"{question.source} was answered in the task {name!r}; judge the base with "
                    "this suite and the same tasks first"
                )
        found[name] = np.asarray(hits, np.float64)
    return found


def evaluate(
    judged: Judged,
    data: ChoiceQuestions,
    settings: ChoiceSuite,
    oracle: Rows | None = None,
) -> SuiteResult:
    """Judge a model by the choices it finds likeliest; 1/choices is guessing.

    Args:
      judged: see `Judged`.
      data: see `read`.
      settings: see `ChoiceSuite`.
      oracle: not used; accuracies of two runs compare as they are.
    Returns:
      See `choice_part` and `letter_part`; with a base `_forget_ratio` of every task, see
      `forget_ratio`, whose interval takes the base's accuracy as known.
    Raises:
      UserError: a question longer than `max_length`.
    """
    questions = data.tasks
    found = choice_likelihoods(judged, questions)
    parts: list[Part] = [choice_part(name, questions[name], each) for name, each in found.items()]
    parts += [
        _forgotten(name, questions[name], before, part.means[f"{name}_accuracy"])
        for part, (name, before) in zip(parts, data.before.items(), strict=False)
    ]
    if settings.letters:
        found = choice_likelihoods(judged, questions, letters=True)
        parts += [letter_part(name, questions[name], each) for name, each in found.items()]
    return result_of(parts)


def _forgotten(
    name: str, questions: Sequence[Question], before: np.ndarray, after: np.ndarray
) -> Part:
    chance = float(np.mean([len(each.correct) / len(each.choices) for each in questions]))
    try:
        return Part({f"{name}_forget_ratio": forget_ratio(before, after, chance)})
    except UserError as error:
        key = f"{name}_forget_ratio"
        return Part(values={key: None}, reasons={key: str(error)})
