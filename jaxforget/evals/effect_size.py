"""How far apart two groups of models are, in standard deviations, and how sure that is.

Source: Hedges 1981; the interval by inverting the noncentral t distribution.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.evals.checks import checked

NON_TRIVIAL = 0.3
"""|g| above which a study of data quality (arXiv 2510.13928) calls an effect non-trivial."""


@dataclass(frozen=True)
class EffectSize:
    """Hedges' g.

    Attributes:
      g: J (m_T - m_C) / s_p, with s_p pooled and J = 1 - 3 / (4 (n_T + n_C) - 9).
      low, high: bounds of the interval.
      confidence: its level.
    """

    g: float
    low: float
    high: float
    confidence: float


def hedges_g(treatment: np.ndarray, control: np.ndarray, *, confidence: float = 0.95) -> EffectSize:
    """Standardised difference of two groups' means, corrected for small groups.

    Args:
      treatment: a score of each model of one group `[n_T]`, n_T >= 2.
      control: of the other `[n_C]`, n_C >= 2.
      confidence: of the interval, in (0, 1). It is exact for normal scores of equal variance.
    Raises:
      UserError: a group of fewer than two, a value that is not finite, no spread at all, or next to
        none.
    """
    ours, theirs = (checked("effect size", each) for each in (treatment, control))
    if min(len(ours), len(theirs)) < 2:
        raise UserError("effect size: each group needs at least two models")
    if not 0 < confidence < 1:
        raise UserError(f"effect size: confidence must be between 0 and 1, is {confidence}")
    freedom = len(ours) + len(theirs) - 2
    squares = ((ours - ours.mean()) ** 2).sum() + ((theirs - theirs.mean()) ** 2).sum()
    if squares == 0:
        raise UserError("effect size: neither group varies, there is no scale to measure by")
    d = float((ours.mean() - theirs.mean()) / np.sqrt(squares / freedom))
    small = 1 - 3 / (4 * (len(ours) + len(theirs)) - 9)
    scale = float(np.sqrt(1 / len(ours) + 1 / len(theirs)))
    tail = (1 - confidence) / 2
    # the distribution is computed more safely above 0, and mirrored below
    far, near = (_shift(abs(d) / scale, freedom, level) for level in (tail, 1 - tail))
    low, high = (near, far) if d >= 0 else (-far, -near)
    return EffectSize(small * d, small * scale * low, small * scale * high, confidence)


def _shift(t: float, freedom: int, level: float) -> float:
    """The noncentrality under which a value up to t >= 0 has this probability."""
    from scipy import optimize, stats

    def apart(shift: float) -> float:
        return float(stats.nct.cdf(t, freedom, shift)) - level

    way = 1.0 if apart(t) > 0 else -1.0
    reach = 1.0
    while apart(t + way * reach) * way > 0:
        reach *= 1.5
    bounds = sorted((t, t + way * reach))
    try:
        found: Any = optimize.brentq(apart, *bounds, xtol=1e-10)
        return float(found)
    except ValueError:  # not a number
        raise UserError(
            f"effect size: groups {t:.3g} standard errors apart are beyond any interval"
        ) from None
