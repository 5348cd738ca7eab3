"""What a language model gains of a fact each time it sees it, and how the gain fades.

`curves[k, q]` is l(q), the mean log-probability of probe q's target tokens, at look k, after
`looks[k]` updates. A fact that the batch of update t holds (updates count from 0) is first seen in
the parameters after t + 1 updates.
Source: Chang et al. 2024 (arXiv 2406.11813), section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxforget.engine.errors import UserError

OUTLIERS = 1.5
"""Interquartile ranges beyond the quartiles at which a value is an outlier, in the paper; its
released code takes 2."""


def local_maximum(curves: np.ndarray, looks: np.ndarray, step: int, window: int) -> np.ndarray:
    """Look of every probe's local acquisition maximum after an encounter.

    Args:
      curves: `[K, P]`, nats.
      looks: updates before each look, increasing integers `[K]`.
      step: update whose batch held the fact.
      window: updates after it in which the effect of the optimizer's momentum unfolds, >= 1.
    Returns:
      int64 `[P]`: the first look with the largest value among those in (step, step + window].
    Raises:
      UserError: there is no look among them.
    """
    curves, looks = _checked(curves, looks)
    inside = np.flatnonzero((looks > step) & (looks <= step + window))
    if not len(inside):
        raise UserError(
            f"acquisition: no look within {window} updates after update {step}; look more often "
            "or widen the window"
        )
    return inside[np.argmax(curves[inside], axis=0)]


def effectivity(
    curves: np.ndarray, looks: np.ndarray, steps: Sequence[int], window: int
) -> np.ndarray:
    """Gain of every probe by each encounter: its local maximum less its value just before.

    May be below 0, since the window leaves the moment of the encounter out.

    Args:
      curves, looks, window: see `local_maximum`.
      steps: updates whose batches held the fact, each of them a look, increasing `[n]`.
    Returns:
      float64 `[n, P]`, nats.
    """
    curves, looks = _checked(curves, looks)
    gains = []
    for step in steps:
        before = curves[_look(looks, step)]
        best = local_maximum(curves, looks, step, window)
        gains.append(curves[best, np.arange(curves.shape[1])] - before)
    return np.asarray(gains).reshape(len(steps), curves.shape[1])


def retainability(
    curves: np.ndarray,
    looks: np.ndarray,
    steps: Sequence[int],
    window: int,
    times: np.ndarray,
) -> np.ndarray:
    """Share of what all encounters have gained that is left, after the last one's local maximum.

    Args:
      curves, looks, steps, window: see `effectivity`.
      times: updates after each probe's last local maximum, integers >= 0 `[T]`.
    Returns:
      float64 `[T, P]`: 1 at time 0, 0 where the value is what it was before the first encounter.
      nan where there is no such look, and for probes that gained nothing: a share of nothing is
      undefined.
    """
    curves, looks = _checked(curves, looks)
    before = curves[_look(looks, steps[0])]
    best = local_maximum(curves, looks, steps[-1], window)
    probes = np.arange(curves.shape[1])
    gain = curves[best, probes] - before
    wanted = looks[best][None] + np.asarray(times)[:, None]
    place = np.minimum(np.searchsorted(looks, wanted), len(looks) - 1)
    there = (looks[place] == wanted) & (gain > 0)
    shares = (curves[place, probes[None]] - before) / np.where(gain > 0, gain, 1)
    return np.where(there, shares, np.nan)


def without_outliers(values: np.ndarray, factor: float = OUTLIERS) -> np.ndarray:
    """Values `[..., P]` with those nan that lie beyond `factor` interquartile ranges of P's."""
    values = np.asarray(values, float)
    low, high = _quantile(values, 0.25), _quantile(values, 0.75)
    reach = factor * (high - low)
    inside = (values >= low - reach) & (values <= high + reach)
    return np.where(inside, values, np.nan)


def filtered_mean(values: np.ndarray, factor: float = OUTLIERS) -> np.ndarray:
    """Mean over the last axis without outliers and nan; nan where nothing is left; `[...]`."""
    kept = without_outliers(values, factor)
    there = np.isfinite(kept)
    count = there.sum(axis=-1)
    sums = np.where(there, kept, 0).sum(axis=-1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Decay:
    """A straight line through retainability over the logarithm of time.

    Attributes:
      constant: a in R = b - a log10(t), per decade of updates.
      intercept: b, R one update after the local maximum.
      r2: share of the variance over these times that the line explains.
      threshold: t at which the line is 0, 10^(b / a): facts that are met less often are not
        learned in the long run. nan where the line does not fall, inf where it is beyond floats.
      points: times that were fitted.
    """

    constant: float
    intercept: float
    r2: float
    threshold: float
    points: int


UNKNOWN = Decay(np.nan, np.nan, np.nan, np.nan, 0)
"""Where fewer than two times are left to fit."""


def decay(times: np.ndarray, shares: np.ndarray) -> Decay:
    """Fit retainability's fall in the logarithm (base 10) of time.

    Args:
      times: updates after the local maximum `[T]`, increasing.
      shares: mean retainability at each `[T]`; nan is left out.
    Returns:
      See `Decay`; of the times above 0 before the first one at which nothing is retained (a share
      of 0 or less), where the law is stated. `UNKNOWN` of fewer than two.
    """
    times, shares = np.asarray(times, float), np.asarray(shares, float)
    there = (times > 0) & np.isfinite(shares)
    gone = np.flatnonzero(there & (shares <= 0))
    there[gone[0] if len(gone) else len(there) :] = False
    if there.sum() < 2:
        return UNKNOWN
    x, y = np.log10(times[there]), shares[there]
    apart = x - x.mean()
    slope = float((apart * (y - y.mean())).sum() / (apart**2).sum())
    intercept = float(y.mean() - slope * x.mean())
    spread = float(((y - y.mean()) ** 2).sum())
    left = float(((y - intercept - slope * x) ** 2).sum())
    threshold = np.nan
    if slope < 0:
        with np.errstate(over="ignore"):
            threshold = float(np.power(10.0, -intercept / slope))
    r2 = 1 - left / spread if spread > 0 else np.nan
    return Decay(-slope, intercept, r2, threshold, int(there.sum()))


@dataclass(frozen=True)
class Retention:
    """Mean retainability over time, its fit, and bootstrap intervals over facts.

    Attributes:
      times: `[T]`.
      mean, low, high: `[T]`, without outliers.
      fit: of the mean.
      constant: (low, high) of the decay constant.
      threshold: (low, high) of the threshold.
      probes: that gained something and count.
    """

    times: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    fit: Decay
    constant: tuple[float, float]
    threshold: tuple[float, float]
    probes: int


def retention(
    times: np.ndarray,
    shares: np.ndarray,
    facts: np.ndarray,
    *,
    factor: float = OUTLIERS,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Retention:
    """Mean retainability without outliers, its fit, and percentile bootstrap intervals.

    Probes of one fact rise and fall together, so facts are resampled, each with all its probes.

    Args:
      times: `[T]`.
      shares: `[T, P]`, see `retainability`.
      facts: int `[P]`, which fact each probe asks about.
      factor: see `without_outliers`.
      resamples: drawn.
      confidence: of the intervals, in (0, 1).
      seed: of the draws.
    """
    shares, facts = np.asarray(shares, float), np.asarray(facts)
    mean = filtered_mean(shares, factor)
    members = [np.flatnonzero(facts == fact) for fact in np.unique(facts)]
    rng = np.random.default_rng(seed)
    means, fits = [], []
    for _ in range(resamples):
        drawn = rng.integers(len(members), size=len(members))
        again = filtered_mean(shares[:, np.concatenate([members[k] for k in drawn])], factor)
        means.append(again)
        fits.append(decay(times, again))
    tail = (1 - confidence) / 2
    low, high = (_quantile(np.asarray(means).T, q)[:, 0] for q in (tail, 1 - tail))

    def interval(name: str) -> tuple[float, float]:
        values = np.asarray([getattr(fit, name) for fit in fits])
        return (float(_quantile(values, tail)[0]), float(_quantile(values, 1 - tail)[0]))

    return Retention(
        np.asarray(times),
        mean,
        low,
        high,
        decay(times, mean),
        interval("constant"),
        interval("threshold"),
        int(np.isfinite(shares).any(axis=0).sum()),
    )


def log_times(every: int, last: int, count: int = 60) -> np.ndarray:
    """Times 0 and about `count` more up to `last`, multiples of `every` evenly apart in log t."""
    if last < every:
        return np.zeros(1, np.int64)
    found = np.geomspace(every, last - last % every, count) / every
    return np.concatenate([[0], np.unique(np.rint(found).astype(np.int64)) * every])


def _checked(curves: np.ndarray, looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    curves, looks = np.asarray(curves, float), np.asarray(looks)
    if curves.ndim != 2 or looks.shape != curves.shape[:1]:
        raise ValueError(f"curves {curves.shape} and looks {looks.shape} do not fit")
    return curves, looks


def _look(looks: np.ndarray, step: int) -> int:
    place = int(np.searchsorted(looks, step))
    if place == len(looks) or looks[place] != step:
        raise UserError(f"acquisition: there is no look just before update {step}")
    return place


def _quantile(values: np.ndarray, q: float) -> np.ndarray:
    """Linear quantile over the last axis, nan left out, kept as an axis of 1."""
    ordered = np.sort(values, axis=-1)  # nan comes last
    count = np.isfinite(ordered).sum(axis=-1, keepdims=True)
    at = np.maximum(count - 1, 0) * q
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    below = np.take_along_axis(ordered, low, axis=-1)
    above = np.take_along_axis(ordered, high, axis=-1)
    # equal ends are not mixed: infinities have no difference
    return np.where(below == above, below, below + (above - below) * (at - low))
