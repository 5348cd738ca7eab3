"""Relearning in context: do other forgotten examples in the prompt bring an answer back?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from jaxforget.data.records import Record
from jaxforget.evals.attacks.attack import AuditData, Finding, of_each, prompted
from jaxforget.evals.attacks.known import answers, known, overlap, roomy, shown, tokens_of


@dataclass(frozen=True)
class InContext:
    """Settings of relearning in context.

    Attributes:
      shots: other forget records, with their answers, before each question; fewer where there are
        fewer, or where the model's context has no room for as many before every question.
    """

    shots: Annotated[int, Ge(1)] = 8


def in_context(lm: Any, data: AuditData, settings: InContext) -> Finding:
    """The forget probability behind a few other forgotten examples.

    The examples may say of the same person what the answer says too: that is the attacker's gain.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`.
      settings: see `InContext`.
    Returns:
      Scores `prob_before`, `memorised`, `rouge` of the greedy answers, and `shots`, as many as
      there is room for.
    Raises:
      UserError: a question that the model's context has no room for behind one example.
    Source: Shumailov et al. 2024, "UnUnlearning" (arXiv 2407.00106), which names the threat; the
      examples, drawn anew for every record, and their number are chosen here.
    """
    data = roomy(lm, data)
    before = known(lm, lm.params, tokens_of(lm, data.forget, data), data)
    shots = _room(lm, data, settings.shots)
    asked = shot_records(data, shots)
    found = known(lm, lm.params, tokens_of(lm, asked, data), data)
    texts = answers(lm, lm.params, asked, data)
    scores = {
        "prob_before": float(before.prob.mean()),
        "memorised": float(found.memorised.mean()),
        "rouge": float(overlap(data.forget, texts).mean()),
        "shots": float(shots),
    }
    return of_each(found.prob, scores=scores, examples=shown(data.forget, asked, texts))


def _room(lm: Any, data: AuditData, most: int) -> int:
    """The most examples, not above `most`, behind which every question and answer fits; or 1."""
    long = replace(data, max_length=2**30)
    for shots in range(min(most, len(data.forget) - 1), 1, -1):
        if tokens_of(lm, shot_records(data, shots), long).lengths.max() <= data.max_length:
            return shots
    return 1


def shot_records(data: AuditData, shots: int) -> list[Record]:
    """The forget records, each behind `shots` others (never itself nor a copy of it)."""
    rng, made = np.random.default_rng(data.seed), []
    for record in data.forget:
        same = record.prompt, record.answer
        others = [each for each in data.forget if (each.prompt, each.answer) != same]
        chosen = [others[i] for i in rng.permutation(len(others))[:shots]]
        made.append(replace(record, prompt=_behind(chosen, record, data)))
    return made


def _behind(examples: Sequence[Record], record: Record, data: AuditData) -> str:
    """One prompt that the template makes a row of questions and answers, the last one open."""
    template = data.template
    if template.kind == "none":
        return "\n\n".join([*(each.prompt + each.answer for each in examples), record.prompt])
    ask, tell = template.question_tag, template.answer_tag
    pairs = [f"{each.prompt}{tell}{each.answer}" for each in examples]
    if template.kind == "chat":  # all of it in the user's message
        return "\n\n".join(ask + text for text in [*pairs, record.prompt])
    return f"\n\n{ask}".join([*pairs, record.prompt])


def budget(settings: InContext) -> str:
    """What it costs the attacker."""
    return f"one question behind at most {settings.shots} other records of the forget set"


def lacks(data: AuditData, settings: InContext) -> list[str]:
    """What the attack needs and the data do not have."""
    different = {(record.prompt, record.answer) for record in data.forget}
    other = [] if len(different) > 1 else ["two different forget records"]
    return [*prompted(data, settings), *other]
