"""Multiple choice by likelihood: every choice of every question in one teacher-forced pass.

Flat arrays hold one entry a choice; question i owns the slice `offsets[i]:offsets[i + 1]`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import entr, softmax

from jaxforget.data.choices import LETTERS, Question
from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.engine.errors import UserError
from jaxforget.evals.checks import checked
from jaxforget.evals.part import Part
from jaxforget.evals.suites.suite import Judged
from jaxforget.evals.teacher_forced import score_set

BLANK = "N/A"
"""Stands for the question where a choice's likelihood without any question is asked for."""

LETTER = "letter"


def accuracies(scores: np.ndarray, offsets: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Is the choice with the highest score a right one?

    Args:
      scores: `[c]`, of each choice.
      offsets: int `[n + 1]`.
      correct: bool `[c]`.
    Returns:
      float64 `[n]` in [0, 1]; where k choices share the highest score, the share of right ones
      among them.
    Raises:
      UserError: a score that is not finite, or no question.
    """
    parts = _split("choices", scores, offsets)
    marks = np.split(np.asarray(correct, bool), offsets[1:-1])
    return np.asarray([m[s == s.max()].mean() for s, m in zip(parts, marks, strict=True)])


def chosen(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Index of each question's choice with the highest score, the first of equals; `[n]`."""
    return np.asarray([int(part.argmax()) for part in _split("choices", scores, offsets)])


def right_mass(logp: np.ndarray, offsets: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Probability of the right choices among all choices of the question.

    Args:
      logp: `[c]`, log-probability of each whole choice, nats.
      offsets: int `[n + 1]`.
      correct: bool `[c]`.
    Returns:
      float64 `[n]` in [0, 1]; with several right ones TruthfulQA's MC2.
    Source: Lin et al. 2021, TruthfulQA (arXiv 2109.07958), for MC2.
    """
    found = []
    marks = np.split(np.asarray(correct, bool), offsets[1:-1])
    for part, mark in zip(_split("choices", logp, offsets), marks, strict=True):
        found.append(softmax(part)[mark].sum())
    return np.asarray(found)


def choice_entropy(logp: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How evenly each question's choices are held likely; 1 is no preference.

    Args:
      logp: `[c]`, log-probability of each whole choice, nats.
      offsets: int `[n + 1]`; two choices a question at least.
    Returns:
      float64 `[n]` in [0, 1]: entropy over log(number of choices).
    """
    parts = _split("choices", logp, offsets)
    return np.asarray([entr(softmax(part)).sum() / np.log(len(part)) for part in parts])


def forget_ratio(before: np.ndarray, after: np.ndarray, chance: float) -> np.ndarray:
    """Share of a task that was forgotten: 0 nothing, 1 all, the model guesses.

    Args:
      before: `[n]`, was each question answered rightly before unlearning, in [0, 1].
      after: `[n]`, the same questions after it.
      chance: accuracy of guessing, in [0, 1).
    Returns:
      float64 `[n]`, whose mean is (accuracy before - after) / (accuracy before - chance); outside
      [0, 1] where the task was learned better or where the answers are worse than guesses.
    Raises:
      UserError: before it the model was no better than chance, or the questions are not the same.
    Source: after Zhang et al. 2024, Unforgettable generalization (arXiv 2409.02228); the formula
      is our reading, the paper's abstract only names the quantity.
    """
    before, after = checked("before", before), checked("after", after)
    if before.shape != after.shape:
        raise UserError(f"forget ratio: {len(before)} questions before, {len(after)} after")
    known = before.mean() - chance
    if known <= 0:
        raise UserError(
            f"forget ratio: the model before answered {before.mean():.3f} of the questions, no "
            f"better than chance ({chance:.3f}); there was nothing to forget"
        )
    return (before - after) / known


def _split(name: str, values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    return np.split(checked(name, values), np.asarray(offsets)[1:-1])


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """What the pass found of every choice; c choices of n questions.

    Attributes:
      offsets: int64 `[n + 1]`.
      correct: bool `[c]`.
      logp: float64 `[c]`, of the choice's text after its question, nats, end of text left out.
      blank: float64 `[c]`, the same after `BLANK` in the question's place.
      tokens: int64 `[c]`, of the choice.
      characters: int64 `[c]`, of the choice.
    """

    offsets: np.ndarray
    correct: np.ndarray
    logp: np.ndarray
    blank: np.ndarray
    tokens: np.ndarray
    characters: np.ndarray

    def scores(self) -> dict[str, np.ndarray]:
        """What the choices can be ranked by, `[c]` each: "sum", "token", "character", "blank"."""
        return {
            "sum": self.logp,
            "token": self.logp / self.tokens,
            "character": self.logp / self.characters,
            "blank": self.logp - self.blank,
        }


def choice_likelihoods(
    judged: Judged, questions: Mapping[str, Sequence[Question]], *, letters: bool = False
) -> dict[str, Likelihoods]:
    """Score every choice of every question of every task in one packed pass.

    Args:
      judged: see `Judged`; the end of a text is not scored.
      questions: by task.
      letters: show the choices under letters in the question and score these letters.
    Returns:
      By task.
    Raises:
      UserError: a question that is longer than `max_length`: choices that are cut cannot be
        compared.
    """
    shown = {name: [_shown(each) for each in some] for name, some in questions.items()}
    asked = shown if letters else questions
    records: dict[tuple[str, str], Record] = {}  # the same text is scored once
    places: dict[str, list[list[int]]] = {}
    order: dict[tuple[str, str], int] = {}
    for name, some in asked.items():
        pairs = [pair for question in some for pair in _pairs(question, letters)]
        for pair in pairs:
            for record in pair:
                key = (record.prompt, record.answer)
                order.setdefault(key, len(order))
                records.setdefault(key, record)
        places[name] = [[order[each.prompt, each.answer] for each in pair] for pair in pairs]
    sums, counts = answer_logp(judged, list(records.values()))
    found = {}
    for name, pairs in places.items():
        asking, blank = np.asarray(pairs, np.int64).T
        answers = [_answers(question, letters) for question in asked[name]]
        found[name] = Likelihoods(
            np.cumsum([0, *map(len, answers)]),
            np.concatenate([_marks(each) for each in asked[name]]),
            sums[asking],
            sums[blank],
            counts[asking],
            np.asarray([len(text) for some in answers for text in some], np.int64),
        )
    return found


def _pairs(question: Question, letters: bool) -> list[tuple[Record, Record]]:
    """(the choice after its question, the choice after a blank) of every choice."""

    def after(text: str, answer: str) -> Record:
        return Record(question.context + text, answer, question.row, question.source)

    answers = _answers(question, letters)
    return [(after(question.text, each), after(BLANK, each)) for each in answers]


def _answers(question: Question, letters: bool) -> Sequence[str]:
    return LETTERS[: len(question.choices)] if letters else question.choices


def _marks(question: Question) -> np.ndarray:
    marks = np.zeros(len(question.choices), bool)
    marks[list(question.correct)] = True
    return marks


def _shown(question: Question) -> Question:
    """The question with its choices under letters."""
    if len(question.choices) > len(LETTERS):
        raise UserError(
            f"row {question.row} of {question.source}: {len(question.choices)} choices are more "
            "than there are letters"
        )
    return dataclasses.replace(question, text=lettered(question.text, question.choices))


def lettered(text: str, choices: Sequence[str]) -> str:
    """A question with its choices below it, a letter before each."""
    lines = (f"\n{letter}. {each}" for letter, each in zip(LETTERS, choices, strict=False))
    return text + "".join(lines)


def answer_logp(judged: Judged, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each answer's text, without what ends it.

    Args:
      judged: see `Judged`.
      records: at least one, none of them plain text.
    Returns:
      (sums, nats, float64 `[n]`; targets they are over, int64 `[n]`).
    Raises:
      UserError: an example that is longer than `max_length`.
    """
    open_ended: Template = dataclasses.replace(judged.template, end=False)
    tokenizer = judged.lm.tokenizer
    tokenised = tokenise(records, tokenizer, open_ended, max_length=judged.max_length)
    if tokenised.truncated:
        raise UserError(
            f"evaluate: {tokenised.truncated} of {len(records)} choices with their questions are "
            f"longer than max_length {judged.max_length}, and what is cut cannot be compared; "
            "raise max_length"
        )
    table = score_set(
        judged.lm.score,
        judged.params,
        tokenised,
        share_prompts=True,
        counted=lambda done, total: judged.counted("scoring", done, total),
    )
    ends: Any = [*judged.lm.eos_ids, *tokenizer.all_special_ids]
    targets = np.split(tokenised.targets[tokenised.mask], tokenised.label_offsets[1:-1])
    values = np.split(table.logp.astype(np.float64), tokenised.label_offsets[1:-1])
    kept = [max(1, _before_the_end(np.isin(part, ends))) for part in targets]
    sums = [part[:count].sum() for part, count in zip(values, kept, strict=True)]
    return np.asarray(sums), np.asarray(kept, np.int64)


def _before_the_end(ends: np.ndarray) -> int:
    """How many entries stand before the closing run of True."""
    inside = np.nonzero(~ends)[0]
    return int(inside[-1]) + 1 if len(inside) else 0


def choice_part(name: str, questions: Sequence[Question], found: Likelihoods) -> Part:
    """Accuracies of one task under every score, and the probability of the right choices.

    Args:
      name: of the task; begins its metrics' names.
      questions: of the task.
      found: see `choice_likelihoods`.
    Returns:
      `_accuracy` by the summed log-probability, `_accuracy_per_token` and
      `_accuracy_per_character` by its mean (lm-evaluation-harness's acc and acc_norm are the first
      and the last), `_accuracy_calibrated` by what the question adds to it, `_prob`, and
      `_entropy` of the choices' distribution, 1 where none is preferred.
    Source: calibration by Holtzman et al. 2021 (arXiv 2104.08315), with the content-free question
      of Zhao et al. 2021 (arXiv 2102.09690).
    """
    hits = {key: accuracies(s, found.offsets, found.correct) for key, s in found.scores().items()}
    mass = right_mass(found.logp, found.offsets, found.correct)
    means = {
        f"{name}_accuracy": hits["sum"],
        f"{name}_accuracy_per_token": hits["token"],
        f"{name}_accuracy_per_character": hits["character"],
        f"{name}_accuracy_calibrated": hits["blank"],
        f"{name}_prob": mass,
        f"{name}_entropy": choice_entropy(found.logp, found.offsets),
    }
    columns = {
        "row": [each.row for each in questions],
        "question": np.asarray([each.text for each in questions]),
        "correct": hits["sum"],
        "chosen": chosen(found.logp, found.offsets),
        "prob": mass,
    }
    return Part(means, rows={name: columns})


def letter_part(name: str, questions: Sequence[Question], found: Likelihoods) -> Part:
    """Accuracies of one task where the letters of the choices were scored.

    Args:
      name, questions, found: as for `choice_part`.
    Returns:
      `_accuracy_letter`, `_accuracy_letter_calibrated` (letters have their own favourites), and
      `_prob_letter`.
    """
    hits = {key: accuracies(s, found.offsets, found.correct) for key, s in found.scores().items()}
    mass = right_mass(found.logp, found.offsets, found.correct)
    means = {
        f"{name}_accuracy_letter": hits["sum"],
        f"{name}_accuracy_letter_calibrated": hits["blank"],
        f"{name}_prob_letter": mass,
    }
    columns = {
        "row": [each.row for each in questions],
        "correct_letter": hits["sum"],
        "chosen_letter": chosen(found.logp, found.offsets),
        "prob_letter": mass,
    }
    return Part(means, rows={name: columns})
