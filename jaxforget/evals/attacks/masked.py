"""Masked entities: is it known whom a text is about, although nothing in it says so?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
from annotated_types import Ge

from jaxforget.data.choices import Question
from jaxforget.data.records import Record
from jaxforget.evals.attacks.attack import AuditData, Finding, of_each
from jaxforget.evals.choices import accuracies, choice_likelihoods, chosen, right_mass
from jaxforget.evals.suites.suite import Judged


@dataclass(frozen=True)
class Masked:
    """Settings of the masking test.

    Attributes:
      by: column that names whom or what a record is about.
      foils: other names to choose from, of the forget and retain sets; fewer where there are fewer.
      question: stands behind the masked text.
      blank: what names and numbers are replaced by.
    """

    by: str = "person"
    foils: Annotated[int, Ge(1)] = 9
    question: str = "Who is this about?"
    blank: str = "___"


def masked(lm: Any, data: AuditData, settings: Masked) -> Finding:
    """How likely is the right name among some, behind a text that has no name and no number left?

    A model that never read of the entity can only guess; one that is right knows the rest of the
    text. Failing is no proof of the contrary: what is suppressed looks as what is erased.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`.
      settings: see `Masked`.
    Returns:
      `known`: the right name's share of the names' likelihoods, each over its likelihood without
      the text; scores `accuracy` and `chance`; examples with the likeliest name.
    Raises:
      UserError: a text that is longer than `max_length`.
    Source: Lopez-Lira, Tang and Zhu 2025 (arXiv 2504.14765), its masking test; choosing among
      names, the foils and the calibration are chosen here.
    """
    questions = masked_questions(data, settings)
    judged = Judged(lm, lm.params, data.template, data.max_length)
    with jax.set_mesh(data.mesh):
        found = choice_likelihoods(judged, {"masked": questions})["masked"]
    gained = found.scores()["blank"]
    share = right_mass(gained, found.offsets, found.correct)
    best = chosen(gained, found.offsets)
    examples = [
        {"row": each.row, "prompt": each.text, "truth": each.choices[0], "answer": each.choices[at]}
        for each, at in zip(questions, best, strict=True)
    ]
    hits = accuracies(gained, found.offsets, found.correct)
    scores = {
        "accuracy": float(hits.mean()),
        "chance": float(np.mean([1 / len(each.choices) for each in questions])),
    }
    return of_each(share, scores=scores, examples=examples)


def masked_questions(data: AuditData, settings: Masked) -> list[Question]:
    """A question of names, the right one first, for every record of the forget set."""
    names = _names([*data.forget, *data.retain], settings.by)
    rng, made = np.random.default_rng(data.seed), []
    for record in data.forget:
        right = str(record.extra[settings.by])
        others = [name for name in names if name != right]
        foils = [others[int(i)] for i in rng.permutation(len(others))[: settings.foils]]
        text = without(f"{record.prompt} {record.answer}".strip(), right, settings.blank)
        asked = f"{text}\n{settings.question}"
        made.append(Question(asked, (right, *foils), (0,), record.row, record.source))
    return made


def without(text: str, name: str, blank: str) -> str:
    """The text with a name, every word of it and every number replaced, in whatever case.

    Args:
      text: any.
      name: one word or more; words of one letter are masked only within the whole name.
      blank: what stands instead; runs of it become one.
    """
    words = [re.escape(word) for word in name.split() if len(word) > 1]
    parts = [re.escape(name), *words, r"\d+(?:[.,:/-]\d+)*"]
    hidden = re.sub(rf"(?i)(?<!\w)(?:{'|'.join(parts)})(?!\w)", lambda _: blank, text)
    again = re.escape(blank)
    return re.sub(rf"{again}(?:\s+{again})+", lambda _: blank, hidden)


def _names(records: Sequence[Record], column: str) -> list[str]:
    return list(dict.fromkeys(str(each.extra[column]) for each in records if column in each.extra))


def budget(settings: Masked) -> str:
    """What it costs the attacker."""
    return f"one question of {settings.foils + 1} names a record, and the text of every record"


def lacks(data: AuditData, settings: Masked) -> list[str]:
    """What the attack needs and the data do not have."""
    if not all(settings.by in record.extra for record in data.forget):
        return [f"a column {settings.by!r} in every forget record"]
    two = len(_names([*data.forget, *data.retain], settings.by)) > 1
    return [] if two else [f"two different names in the column {settings.by!r}"]
