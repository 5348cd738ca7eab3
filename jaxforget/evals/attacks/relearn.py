"""Relearning: how fast does a little training bring back what was forgotten?"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt

from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError
from jaxforget.evals.attacks.attack import AuditData, Finding, halves, of_each
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.brief_training import brief_training

log = logging.getLogger(__name__)

LADDER = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Relearn:
    """Settings of the relearning attack.

    Attributes:
      text: what is trained on: "forget", "half" (of the forget records; measured on the others),
        "retain" (benign neighbours), "unrelated", or the name of a further text.
      steps: of training; measured after 0, 1, 2, 5, 10, 20, 50, .. of them and at the end.
      learning_rates: of AdamW, constant; all are tried, and the one that recovers most counts.
      batch_size: examples a step.
      rank: of the adapters trained; 0: all weights.
    """

    text: str = "forget"
    steps: Annotated[int, Ge(1)] = 50
    learning_rates: tuple[Annotated[float, Gt(0)], ...] = (1e-4, 1e-3)
    batch_size: Annotated[int, Ge(1)] = 4
    rank: Annotated[int, Ge(0)] = 8


def relearn(lm: Any, data: AuditData, settings: Relearn) -> Finding:
    """Train on some text for a few steps and watch the forgotten answers come back.

    `known` is the mean of the forget probability over the steps (the area under its curve by the
    trapezoidal rule), so that it tells models apart by how soon they recover, not only how far.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`.
      settings: see `Relearn`.
    Returns:
      Curves `forget_prob` and `forget_memorised` over steps; scores `prob_before`, `prob_after`,
      `learning_rate`.
    Raises:
      UserError: fewer than two forget records for "half"; no rate at which training is finite.
    Source: the protocol of the BLUR benchmark (arXiv 2506.15699), whose schedule is not published:
      AdamW, ladder of steps and rank are chosen here.
    """
    trained_on, measured = _texts(data, settings.text)
    rows, train_rows = (tokens_of(lm, records, data) for records in (measured, trained_on))
    found: dict[float, Finding] = {}
    for rate in settings.learning_rates:
        try:
            found[rate] = _recovery(lm, train_rows, rows, data, settings, rate)
        except FloatingPointError as error:
            log.warning("relearn: learning rate %g is left out: %s", rate, error)
    if not found:
        raise UserError("relearn: training diverged at every learning rate; lower learning_rates")
    best = max(found, key=lambda rate: found[rate].known)
    return replace(found[best], scores={**found[best].scores, "learning_rate": best})


def _recovery(
    lm: Any,
    trained_on: TokenisedSet,
    measured: TokenisedSet,
    data: AuditData,
    settings: Relearn,
    rate: float,
) -> Finding:
    steps, probs, shares = [], [], []
    training = brief_training(
        lm,
        trained_on,
        {each for each in LADDER if each < settings.steps} | {settings.steps},
        learning_rate=rate,
        batch_size=settings.batch_size,
        mesh=data.mesh,
        seed=data.seed,
        rank=settings.rank,
    )
    for step, params in training:
        found = known(lm, params, measured, data)
        steps.append(float(step))
        probs.append(found.prob)
        shares.append(float(found.memorised.mean()))
    means = [float(each.mean()) for each in probs]
    return of_each(
        np.trapezoid(np.stack(probs), np.array(steps), axis=0) / steps[-1],
        scores={"prob_before": means[0], "prob_after": means[-1]},
        curves={
            "forget_prob": list(zip(steps, means, strict=True)),
            "forget_memorised": list(zip(steps, shares, strict=True)),
        },
    )


def budget(settings: Relearn) -> str:
    """What it costs the attacker."""
    what = f"adapters of rank {settings.rank}" if settings.rank else "all weights"
    return (
        f"{settings.steps} steps of {settings.batch_size} examples of the {settings.text} set, "
        f"training {what}, at the best of {len(settings.learning_rates)} learning rates"
    )


def _texts(data: AuditData, text: str) -> tuple[Sequence[Record], Sequence[Record]]:
    """(trained on, measured on)."""
    if text != "half":
        return data.records(text), data.forget
    if len(data.forget) < 2:
        raise UserError("relearn: half of the forget set needs at least two records")
    return halves(data)
