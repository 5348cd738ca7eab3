"""Membership inference in a suite: the forget set against a holdout set of its kind."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.evals import privacy
from jaxforget.evals.answers import Scored
from jaxforget.evals.part import Part

FORGET, HOLDOUT = "forget", "holdout"

MIN_K = 0.4
"""Share of the tokens that min-k and min-k++ look at: that of MUSE's code and of the peer."""

FPR = 0.01
"""False positive rate of `mia_*_tpr`."""

type Rows = Mapping[str, Mapping[str, Any]]


def membership(
    scored: Scored,
    *,
    members: str = FORGET,
    others: str = HOLDOUT,
    oracle: Rows | None = None,
    norms: Mapping[str, np.ndarray] | None = None,
    peer_compat: bool = False,
) -> Part:
    """Every attack that the pass gives, and PrivLeak.

    Args:
      scored: with both sets.
      members: set of what was learned, and is to be forgotten.
      others: set that it is compared with.
      oracle: the oracle's rows by set, see `SuiteResult.rows`; for the reference attack and
        PrivLeak.
      norms: gradient norms `[n]` of both sets, for that attack; None: it is left out.
      peer_compat: the last target of every answer is left out, end of the text or not, and
        PrivLeak without an oracle takes its AUC to be 0.5.
    Returns:
      `mia_*_auc` and `mia_*_tpr` by attack, `privleak`, and the scores as columns of both sets.
    Raises:
      UserError: an oracle that was evaluated on other rows of the holdout set.
    """
    sides = {
        name: attack_scores(scored, name, peer_compat=peer_compat) for name in (members, others)
    }
    for name, found in sides.items():
        if norms is not None:
            found["mia_gradient_norm"] = privacy.mia_gradient_norm(norms[name])
    theirs, why = _oracle_rows(oracle, scored, (members, others))
    reasons = {}
    if theirs is None:
        reasons["mia_reference_auc"] = why
    else:
        for name, found in sides.items():
            part = scored.answers[name].correct
            found["mia_reference"] = privacy.mia_reference(scored.nll[part], theirs[name]["nll"])
    areas = {f"{name}_auc": (score, sides[others][name]) for name, score in sides[members].items()}
    values: dict[str, float | None] = {name: None for name in reasons}
    for name, score in sides[members].items():
        values[f"{name}_tpr"] = privacy.tpr_at_fpr(score, sides[others][name], fpr=FPR)
    auc = float(privacy.roc_auc(*areas["mia_min_k_auc"]))
    values["privleak"], reason = _privleak(auc, theirs, why, peer_compat, (members, others))
    reasons |= {"privleak": reason} if reason else {}
    return Part(areas=areas, values=values, reasons=reasons, rows=sides)


def attack_scores(scored: Scored, name: str, *, peer_compat: bool = False) -> dict[str, np.ndarray]:
    """What the attacks that need nothing but the pass say of one set.

    Args:
      scored: the pass.
      name: of the set, whose true answers count.
      peer_compat: see `membership`.
    Returns:
      float64 `[n]` by attack, "mia_loss" and so on; higher is more like a member.
    """
    columns, offsets = scored.columns(name)
    part = scored.answers[name].correct
    nll, ended = scored.nll[part], True if peer_compat else scored.ended[part]
    moments = columns["mean"], columns["second_moment"]
    few = {"share": MIN_K, "ended": ended}
    return {
        "mia_loss": privacy.mia_loss(nll),
        "mia_zlib": privacy.mia_zlib(nll, scored.texts[part]),
        "mia_min_k": privacy.mia_min_k(columns["logp"], offsets, **few),
        "mia_min_k_plus_plus": privacy.mia_min_k_plus_plus(
            columns["logp"], *moments, offsets, **few
        ),
    }


def _oracle_rows(
    oracle: Rows | None, scored: Scored, names: tuple[str, str]
) -> tuple[Rows | None, str]:
    """(the oracle's rows of both sets, or None and why)."""
    if oracle is None:
        return None, "no oracle was given (evaluate.oracle)"
    for name in names:
        theirs = oracle.get(name, {})
        if not {"nll", "mia_min_k"} <= set(theirs):
            return None, f"the oracle was not evaluated with a {names[1]} set (evaluate.{names[1]})"
        if list(theirs["row"]) != [record.row for record in scored.answers[name].records]:
            raise UserError(
                f"evaluate.oracle: it was evaluated on other rows of the {name} set than this model"
            )
    return oracle, ""


def _privleak(
    auc: float, oracle: Rows | None, why: str, peer_compat: bool, names: tuple[str, str]
) -> tuple[float | None, str]:
    if oracle is None:
        return (privacy.privleak(auc, peer_compat=True), "") if peer_compat else (None, why)
    sides = (np.asarray(oracle[name]["mia_min_k"]) for name in names)
    theirs = float(privacy.roc_auc(*sides))
    if theirs == 1 and not peer_compat:
        return None, "the oracle's AUC is 1: it has no failures to compare with"
    return privacy.privleak(auc, theirs, peer_compat=peer_compat), ""
