"""Laws of forgetting fitted to a curve: power, exponential, logarithmic; the best by AIC."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxforget.engine.errors import UserError

type Law = Literal["power", "exponential", "logarithmic"]
"""c (1 + t)^-b, c exp(-b t), c - b log10(1 + t)."""


def _power(t: np.ndarray, c: float, b: float) -> np.ndarray:
    return c * (1 + t) ** -b


def _exponential(t: np.ndarray, c: float, b: float) -> np.ndarray:
    return c * np.exp(-b * t)


def _logarithmic(t: np.ndarray, c: float, b: float) -> np.ndarray:
    return c - b * np.log10(1 + t)


LAWS: Mapping[Law, Callable[..., np.ndarray]] = {
    "power": _power,
    "exponential": _exponential,
    "logarithmic": _logarithmic,
}
_TINY = 1e-300  # a perfect fit's logarithm is finite


@dataclass(frozen=True)
class Fit:
    """One law fitted by least squares.

    Attributes:
      law: see `Law`.
      c: value at time 0.
      b: rate, >= 0 where the curve falls.
      covariance: float64 `[2, 2]` of (c, b).
      r2: share of the variance explained; nan of a constant curve.
      aic: n log(RSS / n) + 2 k, k = 3 with the variance; smaller is better.
      points: n.
    """

    law: Law
    c: float
    b: float
    covariance: np.ndarray
    r2: float
    aic: float
    points: int

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """The law at these times `[T]`."""
        return LAWS[self.law](np.asarray(times, float), self.c, self.b)

    def band(self, times: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) of the fitted mean at these times, each `[T]`, by the delta method."""
        from scipy import stats

        jacobian = _jacobian(self.law, np.asarray(times, float), self.c, self.b)
        variance = np.einsum("ti,ij,tj->t", jacobian, self.covariance, jacobian)
        reach = stats.t.ppf(0.5 + confidence / 2, self.points - 2) * np.sqrt(variance)
        middle = self(times)
        return middle - reach, middle + reach

    @property
    def half_life(self) -> float:
        """Time until half of c is left; inf where the curve does not fall."""
        if self.b <= 0 or self.c <= 0:
            return float("inf")
        if self.law == "exponential":
            return float(np.log(2) / self.b)
        with np.errstate(over="ignore"):
            if self.law == "power":
                return float(np.power(2.0, 1 / self.b) - 1)
            return float(np.power(10.0, self.c / 2 / self.b) - 1)


def _jacobian(law: Law, t: np.ndarray, c: float, b: float) -> np.ndarray:
    """Derivatives by c and b, `[T, 2]`."""
    if law == "power":
        shape = (1 + t) ** -b
        return np.stack([shape, -c * np.log1p(t) * shape], axis=1)
    if law == "exponential":
        shape = np.exp(-b * t)
        return np.stack([shape, -c * t * shape], axis=1)
    return np.stack([np.ones_like(t), -np.log10(1 + t)], axis=1)


def fit(times: np.ndarray, values: np.ndarray, law: Law) -> Fit:
    """Least-squares fit of one law.

    Args:
      times: >= 0 `[n]`, n >= 3.
      values: of the curve `[n]`.
      law: see `Law`.
    Raises:
      UserError: fewer than three finite points, a time below 0, or no fit was found.
    """
    from scipy.optimize import curve_fit

    times, values = np.asarray(times, float), np.asarray(values, float)
    there = np.isfinite(times) & np.isfinite(values)
    times, values = times[there], values[there]
    if len(times) < 3 or times.min() < 0:
        raise UserError("retention fit: at least three finite points at times from 0 are needed")

    def jacobian(t: np.ndarray, c: float, b: float) -> np.ndarray:
        return _jacobian(law, t, c, b)

    try:
        found, covariance = curve_fit(
            LAWS[law], times, values, _start(law, times, values), jac=jacobian, maxfev=10_000
        )
    except RuntimeError as error:
        raise UserError(f"retention fit: no {law} law fits this curve ({error})") from None
    c, b = map(float, found)
    rss = float(((values - LAWS[law](times, c, b)) ** 2).sum())
    spread = float(((values - values.mean()) ** 2).sum())
    count = len(times)
    aic = count * np.log(max(rss / count, _TINY)) + 2 * 3
    r2 = 1 - rss / spread if spread > 0 else float("nan")
    return Fit(law, c, b, np.asarray(covariance, float), r2, float(aic), count)


def _start(law: Law, times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """First guess: a line through the curve, or its logarithm where it is positive."""
    x = times if law == "exponential" else np.log1p(times)
    if law == "logarithmic":
        x = np.log10(1 + times)
    y = values if law == "logarithmic" else np.log(np.maximum(values, 1e-3 * np.abs(values).max()))
    y = np.where(np.isfinite(y), y, 0.0)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    level = float(y.mean() - slope * x.mean())
    return (level if law == "logarithmic" else float(np.exp(level)), -slope)


def best_fit(
    times: np.ndarray, values: np.ndarray, laws: Sequence[Law] = ("power", "exponential")
) -> tuple[Fit, dict[str, Fit]]:
    """(the fit of least AIC, all of them by law); see `fit`. Laws that fit nowhere are left out.

    Raises:
      UserError: as `fit`, where no law is left.
    """
    fits: dict[str, Fit] = {}
    problem = UserError("retention fit: there is no law to fit")
    for law in laws:
        try:
            fits[law] = fit(times, values, law)
        except UserError as error:
            problem = error
    if not fits:
        raise problem
    return min(fits.values(), key=lambda each: each.aic), fits
