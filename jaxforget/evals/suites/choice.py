"""Multiple choice by likelihood, as WMDP and MMLU are scored; any file of questions and choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from jaxforget.data.choices import ChoiceSource, Question, load_questions
from jaxforget.engine.errors import UserError
from jaxforget.evals.choices import choice_likelihoods, choice_part, letter_part
from jaxforget.evals.membership import Rows
from jaxforget.evals.part import Part
from jaxforget.evals.suites.suite import Judged, SuiteResult, result_of


@dataclass(frozen=True)
class ChoiceSuite:
    """The multiple-choice suite.

    Attributes:
      tasks: sets of questions, by the name that their metrics begin with.
      suite: "choice".
      letters: also show the choices under letters in the question, and score these letters.
      limit: questions used of each task; None: all.
    """

    tasks: Mapping[str, ChoiceSource]
    suite: Literal["choice"] = "choice"
    letters: bool = False
    limit: Annotated[int, Ge(1)] | None = None


def read(settings: ChoiceSuite) -> dict[str, list[Question]]:
    """The questions by task.

    Raises:
      UserError: no task, a name that is no word, or questions that cannot be read.
    """
    if not settings.tasks:
        raise UserError("evaluate.tasks: names no set of questions")
    for name in settings.tasks:
        if not name.isidentifier():
            raise UserError(f"evaluate.tasks: {name!r} must be one word, as metrics begin with it")
    tasks = settings.tasks.items()
    return {name: load_questions(source)[: settings.limit] for name, source in tasks}


def evaluate(
    judged: Judged,
    questions: Mapping[str, Sequence[Question]],
    settings: ChoiceSuite,
    oracle: Rows | None = None,
) -> SuiteResult:
    """Judge a model by the choices it finds likeliest; 1/choices is guessing.

    Args:
      judged: see `Judged`.
      questions: by task, see `read`.
      settings: see `ChoiceSuite`.
      oracle: not used; accuracies of two runs compare as they are.
    Returns:
      See `choice_part` and `letter_part`.
    Raises:
      UserError: a question longer than `max_length`.
    """
    found = choice_likelihoods(judged, questions)
    parts: list[Part] = [choice_part(name, questions[name], each) for name, each in found.items()]
    if settings.letters:
        found = choice_likelihoods(judged, questions, letters=True)
        parts += [letter_part(name, questions[name], each) for name, each in found.items()]
    return result_of(parts)
