"""REMIND: does the loss around an example betray that it was once known?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from jaxforget.data.records import Record
from jaxforget.evals.attacks.attack import AuditData, Finding
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.attacks.membership import area_scores, lacks, roc_curve
from jaxforget.evals.attacks.neighbours import neighbourhood

__all__ = ["Remind", "budget", "features", "lacks", "remind", "told"]

QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Remind:
    """Settings of REMIND.

    Attributes:
      variants: of every record.
      rate: share of the tokens that a variant replaces, in [0, 1].
      targets: "changed": a variant is a text of its own, and its loss that of its own answer;
        "kept": the loss of the true answer behind a changed text.
      nearest: a token's neighbours that take its place: this many, of the whole vocabulary.
      folds: of the cross-validation; at most as many as the smaller set has records.
      penalty: weight of the squared norm in the logistic regression.
    """

    variants: Annotated[int, Ge(1)] = 32
    rate: Annotated[float, Ge(0), Le(1)] = 0.15
    targets: Literal["changed", "kept"] = "changed"
    nearest: Annotated[int, Ge(1)] = 5
    folds: Annotated[int, Ge(2)] = 5
    penalty: Annotated[float, Gt(0)] = 1.0


@dataclass(frozen=True)
class Landscape:
    """Losses of n records and of their K variants, mean NLL per token, nats.

    Attributes:
      loss: float64 `[n]`.
      rise: float64 `[K, n]`, each variant's loss less the record's.
      edited: float64 `[K, n]`, share of the tokens replaced.
      rank: int64 `[K]`, how near the replacements are, from 1.
    """

    loss: np.ndarray
    rise: np.ndarray
    edited: np.ndarray
    rank: np.ndarray


def remind(lm: Any, data: AuditData, settings: Remind) -> Finding:
    """AUC of a classifier of forget against holdout by how the loss changes around each record.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`; forget and holdout are compared.
      settings: see `Remind`.
    Returns:
      `known` is 2 AUC - 1, not below 0; scores `auc` with its interval and `loss_auc` with its
      own, which the same classifier reaches with the loss of the record itself, and `joint_auc`
      with its own, with the landscape and the loss together; `steepness_forget` and
      `steepness_holdout`, the mean of |rise| over the share of tokens replaced. Curves `roc` and
      `landscape_forget`, `landscape_holdout`: the rise (nats) that a share x of a record's
      variants stays below, mean over the records.
    Source: REMIND (arXiv 2511.04228): neighbours by cosine of the input embeddings. Not published
      and chosen here: `variants`, `rate`, `targets`, `nearest`, the `features`, which leave the
      record's own loss out so that nothing but the landscape counts, and a logistic regression,
      by cross-validation over records. The paper's third class, retained records, is left out.
    """
    forget, holdout = (_landscape(lm, each, data, settings) for each in (data.forget, data.holdout))
    shapes, heights = ([read(each) for each in (forget, holdout)] for read in (features, _height))
    both = [np.concatenate(pair, axis=1) for pair in zip(shapes, heights, strict=True)]
    around, at, joint = (
        told(one, other, settings, data.seed) for one, other in (shapes, heights, both)
    )
    areas = area_scores(*around, seed=data.seed)
    others = {
        f"{name}_{key}": value
        for name, pair in (("loss", at), ("joint", joint))
        for key, value in area_scores(*pair, seed=data.seed).items()
    }
    return Finding(
        known=max(0.0, 2 * areas["auc"] - 1),
        scores={
            **areas,
            **others,
            "steepness_forget": float(_steepness(forget).mean()),
            "steepness_holdout": float(_steepness(holdout).mean()),
        },
        curves={
            "roc": roc_curve(*around),
            "landscape_forget": _profile(forget),
            "landscape_holdout": _profile(holdout),
        },
    )


def _landscape(lm: Any, records: Sequence[Record], data: AuditData, settings: Remind) -> Landscape:
    near = neighbourhood(
        lm,
        tokens_of(lm, records, data),
        variants=settings.variants,
        rate=settings.rate,
        nearest=settings.nearest,
        seed=data.seed,
        keep=settings.targets == "kept",
    )
    nll = known(lm, lm.params, near.tokenised, data).nll.reshape(-1, len(records))
    # a variant without a replacement is the record itself, however it was packed
    rise = np.where(near.edited > 0, nll[1:] - nll[0], 0.0)
    return Landscape(nll[0], rise, near.edited, near.rank)


def features(found: Landscape) -> np.ndarray:
    """What a landscape looks like, without its height.

    Args:
      found: of n records.
    Returns:
      float64 `[n, 9 + ranks]`: of the rises mean, deviation, least, quantiles, largest, share
      below 0, `_steepness`, and the mean of every rank of neighbours.
    """
    rise = found.rise
    summary = [rise.mean(0), rise.std(0), rise.min(0), *np.quantile(rise, QUANTILES, axis=0)]
    summary += [rise.max(0), (rise < 0).mean(0), _steepness(found)]
    by_rank = [rise[found.rank == rank].mean(0) for rank in np.unique(found.rank)]
    return np.stack([*summary, *by_rank], axis=1)


def _height(found: Landscape) -> np.ndarray:
    """The records' own losses, `[n, 1]`."""
    return found.loss[:, None]


def _steepness(found: Landscape) -> np.ndarray:
    """Mean of |rise| over the share of tokens replaced, of the variants that have some; `[n]`."""
    some = found.edited > 0
    slope = np.abs(found.rise) / np.where(some, found.edited, 1.0)
    return (slope * some).sum(0) / np.maximum(some.sum(0), 1)


def _profile(found: Landscape) -> list[tuple[float, float]]:
    """(share of the variants, rise that it stays below), means over the records."""
    heights = np.sort(found.rise, axis=0).mean(axis=1)
    shares = (np.arange(len(heights)) + 0.5) / len(heights)
    return [(float(x), float(y)) for x, y in zip(shares, heights, strict=True)]


def told(
    members: np.ndarray, others: np.ndarray, settings: Remind, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """How much like a member a classifier that has not seen it takes each example to be.

    Args:
      members: features `[n, F]`, n >= 2.
      others: features `[m, F]`, m >= 2.
      settings: for folds and penalty.
      seed: of the folds.
    Returns:
      Probabilities of being a member, float64 `[n]` and `[m]`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = len(members)
    truth = np.repeat([1, 0], [count, len(others)])
    folds = min(settings.folds, count, len(others))
    # balanced, so that folds of unlike shares do not differ in what they take for granted
    classifier = LogisticRegression(C=1 / settings.penalty, class_weight="balanced", max_iter=1000)
    found = cross_val_predict(
        make_pipeline(StandardScaler(), classifier),
        np.concatenate([members, others]),
        truth,
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="predict_proba",
    )
    chance = np.round(np.asarray(found)[:, 1], 9)  # what is equal but for rounding is equal
    return chance[:count], chance[count:]


def budget(settings: Remind) -> str:
    """What it costs the attacker."""
    return (
        f"the losses of every record and of {settings.variants} variants of it, and examples of "
        "both kinds to train a logistic regression on"
    )
