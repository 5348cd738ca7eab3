"""From examples to one number, its interval, and what it says beside another model's."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.evals.checks import checked

UTILITY_PARTS = (
    "retain_prob",
    "retain_rouge",
    "retain_truth_ratio",
    "ra_prob",
    "ra_rouge",
    "ra_truth_ratio",
    "wf_prob",
    "wf_rouge",
    "wf_truth_ratio",
)
"""The nine numbers whose harmonic mean is model utility (TOFU)."""

_TINY = 1e-10  # the peer's guard against division by zero
_CELLS = 2**22  # resampled values held at a time


def forget_quality(ratios: np.ndarray, oracle_ratios: np.ndarray) -> float:
    """p-value of the two-sided two-sample Kolmogorov-Smirnov test between truth ratios.

    Args:
      ratios: `[n]`, of the unlearned model on the forget set.
      oracle_ratios: `[m]`, of a model that never saw it.
    Returns:
      In [0, 1]; high where the two cannot be told apart.
    Source: Maini et al. 2024, section 2.2.
    """
    from scipy.stats import ks_2samp

    ours, theirs = (checked("forget quality", each) for each in (ratios, oracle_ratios))
    return float(ks_2samp(ours, theirs).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def harmonic_mean(parts: Mapping[str, float]) -> float:
    """Harmonic mean of numbers >= 0; 0 where any is 0. Of `UTILITY_PARTS`: model utility."""
    values = checked("model utility", np.asarray(list(parts.values()), np.float64))
    if values.min() < 0:
        raise UserError(f"model utility: a part is below 0: {dict(parts)}")
    if values.min() == 0:
        return 0.0
    return float(len(values) / (1 / values).sum())


def generalisation(
    before: np.ndarray, after: np.ndarray, before_reworded: np.ndarray, after_reworded: np.ndarray
) -> float:
    """Share of the forgetting that reaches other wordings of the same questions or answers.

    Args:
      before, after: any score of the forget set's own wording `[n]`, higher is better known, by
        the model before and after unlearning.
      before_reworded, after_reworded: the same score of the other wordings `[m]`.
    Returns:
      (mean drop reworded) / (mean drop): 1 where both are forgotten alike, 0 where only the
      trained wording is.
    Raises:
      UserError: nothing was forgotten, so that there is nothing to compare with.
    """
    name = "generalisation"
    drop = checked(name, before).mean() - checked(name, after).mean()
    reworded = checked(name, before_reworded).mean() - checked(name, after_reworded).mean()
    if drop <= 0:
        raise UserError(f"{name}: the score did not drop on the trained wording (by {drop:.3g})")
    return float(reworded / drop)


def relative_difference(value: float, reference: float, *, peer_compat: bool = False) -> float:
    """100 (value - reference) / reference, in per cent.

    Args:
      value: of the model.
      reference: of the oracle, not 0.
      peer_compat: the peer's denominator, 1e-10 larger: finite where the reference is 0.
    Raises:
      UserError: a value that is not finite, or a reference of 0.
    """
    checked("relative difference", np.asarray([value, reference]))
    if reference == 0 and not peer_compat:
        raise UserError("relative difference: the reference is 0, nothing is relative to it")
    return float(100 * (value - reference) / (reference + (_TINY if peer_compat else 0.0)))


@dataclass(frozen=True)
class Interval:
    """A statistic and its confidence interval.

    Attributes:
      value: of the sample itself.
      low, high: bounds of the interval; equal to `value` where every resample gives it.
      method: "bca" or "percentile".
    """

    value: float
    low: float
    high: float
    method: Literal["bca", "percentile"]


def bootstrap(
    *samples: np.ndarray,
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
    resamples: int = 2000,
    paired: bool = False,
    seed: int = 0,
) -> Interval:
    """Bootstrap confidence interval of a statistic of per-example values.

    Args:
      samples: `[n]` each; several for statistics of several, such as `roc_auc`.
      statistic: of as many arrays; one with an `axis` argument is called on all resamples at once.
      confidence: level of the interval, in (0, 1).
      method: "bca" corrects for bias and skew (Efron 1987), "percentile" does not. Where the
        correction is not defined, because no example on its own changes the statistic,
        percentiles are taken and `Interval.method` says so.
      resamples: drawn with replacement, each sample apart.
      paired: draw the same examples of every sample.
      seed: of the draws.
    Returns:
      See `Interval`; the same for the same seed.
    Raises:
      UserError: fewer than two examples, a value that is not finite, paired samples of different
        lengths, an impossible level or method.
    """
    values = [checked("bootstrap", sample) for sample in samples]
    _refuse_impossible(values, confidence, method, resamples, paired)
    point = float(statistic(*values))
    found = _intervals(values, statistic, confidence, method, resamples, paired, seed)
    if found is None:
        method = "percentile"
        found = _intervals(values, statistic, confidence, method, resamples, paired, seed)
    assert found is not None
    return Interval(point, *found, method)


def _refuse_impossible(
    values: list[np.ndarray], confidence: float, method: str, resamples: int, paired: bool
) -> None:
    if not values or min(map(len, values)) < 2:
        raise UserError("bootstrap: an interval needs at least two examples")
    if not 0 < confidence < 1:
        raise UserError(f"bootstrap: confidence must be between 0 and 1, is {confidence}")
    if method not in ("bca", "percentile"):
        raise UserError(f"bootstrap: no method {method!r}. Allowed: bca, percentile.")
    if resamples < 1:
        raise UserError(f"bootstrap: resamples must be at least 1, is {resamples}")
    if paired and len(set(map(len, values))) > 1:
        raise UserError("bootstrap: paired samples must have the same length")


def _intervals(
    values: list[np.ndarray],
    statistic: Callable[..., Any],
    confidence: float,
    method: str,
    resamples: int,
    paired: bool,
    seed: int,
) -> tuple[float, float] | None:
    """(low, high), or None where scipy cannot tell."""
    from scipy import stats

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            values,
            statistic,
            n_resamples=resamples,
            batch=max(1, _CELLS // sum(map(len, values))),
            confidence_level=confidence,
            method="BCa" if method == "bca" else "percentile",
            paired=paired,
            rng=np.random.default_rng(seed),
        )
    low, high = map(float, found.confidence_interval)
    return (low, high) if np.isfinite([low, high]).all() else None
