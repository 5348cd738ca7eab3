"""No attack: what the model says when it is simply asked."""

from dataclasses import dataclass
from typing import Any

from jaxforget.evals.attacks.attack import AuditData, Finding, of_each
from jaxforget.evals.attacks.known import answers, known, overlap, shown, tokens_of


@dataclass(frozen=True)
class Ask:
    """No settings."""


def ask(lm: Any, data: AuditData, settings: Ask) -> Finding:
    """The forget probability, and greedy answers to read.

    Returns:
      Scores `memorised` (share of tokens that are the most likely ones) and `rouge` (ROUGE-L
      recall of the greedy answers), and `retain_prob`.
    """
    found = known(lm, lm.params, tokens_of(lm, data.forget, data), data)
    texts = answers(lm, lm.params, data.forget, data)
    scores = {
        "memorised": float(found.memorised.mean()),
        "rouge": float(overlap(data.forget, texts).mean()),
    }
    if data.retain:
        kept = known(lm, lm.params, tokens_of(lm, data.retain, data), data)
        scores["retain_prob"] = float(kept.prob.mean())
    rows = shown(data.forget, data.forget, texts)
    return of_each(found.prob, scores=scores, examples=rows)


def budget(settings: Ask) -> str:
    """What it costs the attacker."""
    return "one question"
