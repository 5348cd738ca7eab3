"""REMIND: does the loss around an example betray that it was once known?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from jaxforget.data.records import Record
from jaxforget.evals.attacks.attack import AuditData, Finding
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.attacks.membership import roc_curve
from jaxforget.evals.attacks.neighbours import neighbourhood
from jaxforget.evals.attacks.telling import clusters_of, told
from jaxforget.evals.clustered import Area, clustered_auc, difference
from jaxforget.evals.privacy import roc_auc, tpr_at_fpr

QUANTILES = (0.25, 0.5, 0.75)

FPR = 0.01
"""False positive rate of the scores named `tpr`."""


@dataclass(frozen=True)
class Remind:
    """Settings of REMIND.

    Attributes:
      variants: of every record.
      rate: share of the tokens that a variant replaces, in [0, 1].
      targets: "changed": a variant is a text of its own, and its loss that of its own answer;
        "kept": the loss of the true answer behind a changed text.
      nearest: a token's neighbours that take its place: this many, of the whole vocabulary.
      by: column of the records; those of one value, such as one person's, are in one fold, and are
        drawn together for the intervals. A record without it stands for itself.
      folds: of the cross-validation; at most as many as the smaller set has values of `by`.
      repeats: of the cross-validation, with other folds; the mean counts.
      penalty: weight of the squared norm in the logistic regression.
    """

    variants: Annotated[int, Ge(1)] = 32
    rate: Annotated[float, Ge(0), Le(1)] = 0.15
    targets: Literal["changed", "kept"] = "changed"
    nearest: Annotated[int, Ge(1)] = 5
    by: str = "person"
    folds: Annotated[int, Ge(2)] = 5
    repeats: Annotated[int, Ge(1)] = 5
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
    """AUC of a classifier of forget against holdout by the losses around each record.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`; forget and holdout are compared.
      settings: see `Remind`.
    Returns:
      `known` is 2 AUC - 1, not below 0. Scores: `auc`, with its interval, and `tpr`, the share of
      the forget records named at a false positive rate of `FPR`; `loss_` the same where the
      classifier reads nothing but the loss of the record itself, and `shape_` where it reads all
      but that; `gain`, with its interval, of `auc` over `loss_auc`, over the same draws;
      `raw_loss_auc`, of the loss without a classifier, above one half where forgotten records have
      the lower; `steepness_forget` and `steepness_holdout`, the mean of |rise| over the share of
      tokens replaced. Curves `roc` and `landscape_forget`, `landscape_holdout`: the rise (nats)
      that a share x of a record's variants stays below, mean over the records.
    Source: REMIND (arXiv 2511.04228): neighbours by cosine of the input embeddings, a classifier of
      the landscape. Not published and chosen here: `variants`, `rate`, `targets`, `nearest`, the
      features (`READINGS`), a logistic regression, cross-validation that keeps people together.
      The paper's third class, retained records, is left to `benchmarks/remind.py`.
    """
    sets = data.forget, data.holdout
    found = [landscape(lm, each, data, settings) for each in sets]
    clusters = [clusters_of(each, settings.by) for each in sets]
    areas: dict[str, Area] = {}
    tprs, rocs = {}, {}
    for name, read in READINGS.items():
        chances = classified([read(each) for each in found], clusters, settings, data.seed)
        sides = [each[:, 0] for each in chances]
        areas[name] = _area(sides, clusters, data.seed)
        tprs[name], rocs[name] = tpr_at_fpr(*sides, fpr=FPR), roc_curve(*sides)
    gain = difference(areas["remind"], areas["loss"])
    prefix = {name: "" if name == "remind" else f"{name}_" for name in READINGS}
    return Finding(
        known=max(0.0, 2 * areas["remind"].value - 1),
        scores={
            **{k: v for name in READINGS for k, v in _told(areas[name], f"{prefix[name]}auc")},
            **{f"{prefix[name]}tpr": tprs[name] for name in READINGS},
            **dict(_told(gain, "gain")),
            "raw_loss_auc": float(roc_auc(*(-each.loss for each in found))),
            "steepness_forget": float(_steepness(found[0]).mean()),
            "steepness_holdout": float(_steepness(found[1]).mean()),
        },
        curves={
            "roc": rocs["remind"],
            "landscape_forget": _profile(found[0]),
            "landscape_holdout": _profile(found[1]),
        },
    )


def classified(
    sets: Sequence[np.ndarray],
    clusters: Sequence[Sequence[object]],
    settings: Remind,
    seed: int,
) -> list[np.ndarray]:
    """`told` with the settings of REMIND."""
    return told(
        sets,
        clusters,
        folds=settings.folds,
        repeats=settings.repeats,
        penalty=settings.penalty,
        seed=seed,
    )


def _area(sides: Sequence[np.ndarray], clusters: Sequence[Sequence[object]], seed: int) -> Area:
    return clustered_auc(*sides, member_clusters=clusters[0], other_clusters=clusters[1], seed=seed)


def _told(area: Area, name: str) -> list[tuple[str, float]]:
    low, high = area.interval()
    return [(name, area.value), (f"{name}_low", low), (f"{name}_high", high)]


def landscape(lm: Any, records: Sequence[Record], data: AuditData, settings: Remind) -> Landscape:
    """The losses of some records and of their variants.

    Args:
      lm: `LanguageModel`.
      records: n.
      data: for the template, the batch, the seed of the draws and the mesh.
      settings: for the variants.
    """
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


def shape(found: Landscape) -> np.ndarray:
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


def height(found: Landscape) -> np.ndarray:
    """The records' own losses, `[n, 1]`: all that an attack on single points sees."""
    return found.loss[:, None]


def features(found: Landscape) -> np.ndarray:
    """Both, `[n, 10 + ranks]`: REMIND's."""
    return np.concatenate([height(found), shape(found)], axis=1)


READINGS: Mapping[str, Callable[[Landscape], np.ndarray]] = {
    "remind": features,
    "loss": height,
    "shape": shape,
}
"""What a classifier may read of a landscape; each is judged in the same folds."""


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


def budget(settings: Remind) -> str:
    """What it costs the attacker."""
    return (
        f"the losses of every record and of {settings.variants} variants of it, and examples of "
        "both kinds to train a logistic regression on"
    )


def lacks(data: AuditData, settings: Remind) -> Sequence[str]:
    """What it needs and the data do not have: somebody to learn from, and somebody to ask about."""
    return [
        f"{name} records of two values of {settings.by!r}"
        for name in ("forget", "holdout")
        if data.records(name) and len(set(clusters_of(data.records(name), settings.by))) < 2
    ]
