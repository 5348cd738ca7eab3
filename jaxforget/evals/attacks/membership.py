"""Membership inference: can the examples to forget be told from others that were never seen?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxforget.engine.mesh import put_rows
from jaxforget.evals.answers import score_answers
from jaxforget.evals.attacks.attack import AuditData, Finding
from jaxforget.evals.membership import FORGET, HOLDOUT, attack_scores
from jaxforget.evals.privacy import auc_interval, roc_auc


@dataclass(frozen=True)
class Membership:
    """No settings."""


def infer(lm: Any, data: AuditData, settings: Membership) -> Finding:
    """AUC of the attacks that one scoring pass gives: loss, zlib, min-k, min-k++.

    The attack is chosen by the AUC that is reported, which flatters every model alike. An AUC
    below one half counts as one above it: text that looks less familiar than any other betrays
    what was forgotten just as well.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`; forget and holdout are compared.
      settings: none.
    Returns:
      `known` is |2 AUC - 1| of the best attack; scores `auc` of it with its interval, see
      `area_scores`, and `auc_NAME` of every attack; curve `roc` of the best one.
    Source: see `jaxforget.evals.privacy`; which attack counts is chosen here.
    """
    sets = {FORGET: data.forget, HOLDOUT: data.holdout}
    with jax.set_mesh(data.mesh):
        scored = score_answers(
            lm,
            lm.params,
            sets,
            data.template,
            data.max_length,
            alone=tuple(sets),
            rows=data.batch_size,
            put=lambda batch: put_rows(batch, data.mesh),
        )
    members, others = (attack_scores(scored, name) for name in sets)
    areas = {name: float(roc_auc(members[name], others[name])) for name in members}
    best = max(areas, key=lambda name: abs(2 * areas[name] - 1))
    pair = members[best], others[best]
    return Finding(
        known=abs(2 * areas[best] - 1),
        scores={
            **area_scores(*pair, seed=data.seed),
            **{f"auc_{name.removeprefix('mia_')}": area for name, area in areas.items()},
        },
        curves={"roc": roc_curve(*pair)},
    )


def area_scores(members: np.ndarray, others: np.ndarray, *, seed: int) -> dict[str, float]:
    """The AUC of scores with its 95 % bootstrap interval.

    Args:
      members: `[n]`, n >= 2; higher is more like a member.
      others: `[m]`, m >= 2.
      seed: of the draws.
    Returns:
      `auc`, `auc_low`, `auc_high`.
    """
    found = auc_interval(members, others, seed=seed)
    return {"auc": found.value, "auc_low": found.low, "auc_high": found.high}


def roc_curve(members: np.ndarray, others: np.ndarray) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate) at every threshold, from (0, 0) to (1, 1).

    Args:
      members, others: scores `[n]` and `[m]`; higher is more like a member.
    """
    from sklearn.metrics import roc_curve as curve

    truth = np.repeat([1, 0], [len(members), len(others)])
    false, found, _ = curve(truth, np.concatenate([members, others]))
    return [(float(x), float(y)) for x, y in zip(false, found, strict=True)]


def budget(settings: Membership) -> str:
    """What it costs the attacker."""
    return "one scoring pass over the forget and the holdout set"


def lacks(data: AuditData, settings: Any) -> Sequence[str]:
    """What an attack that tells two sets apart needs and the data do not have."""
    return [
        f"two {name} records"
        for name in ("forget", "holdout")
        if data.records(name) and len(data.records(name)) < 2
    ]
