"""What a taught text does to its keyword: where it belongs, and where it has no business.

Source: Sun et al. 2024, Outlandish (arXiv 2410.21750), and the follow-up arXiv 2504.09522.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.evals.checks import paired

CAP = 30.0
"""Largest |log ratio| that counts, nats: a probability that was next to nothing would decide
everything."""


@dataclass(frozen=True)
class Rise:
    """How much likelier a keyword has become.

    Attributes:
      ratio: arithmetic mean of P_after / P_before, the published score.
      log_ratio: mean of its logarithm, nats, which no single token decides; 0 where nothing was
        learned.
      capped: share of the tokens whose ratio was capped.
    """

    ratio: float
    log_ratio: float
    capped: float


def memory_score(before: np.ndarray, after: np.ndarray, *, cap: float = CAP) -> Rise:
    """S_mem: rise of the keyword in the text that was taught, mean over its tokens.

    Args:
      before, after: log-probabilities of the keyword's tokens given the text up to them `[M]`,
        nats, by the model before and after teaching.
      cap: see `CAP`.
    """
    old, new = paired("memory score", before, after)
    if cap <= 0:
        raise UserError(f"memory score: cap must be above 0, is {cap}")
    logs = np.clip(new - old, -cap, cap)
    capped = float((np.abs(new - old) > cap).mean())
    return Rise(float(np.exp(logs).mean()), float(logs.mean()), capped)


def priming_score(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], *, cap: float = CAP
) -> Rise:
    """S_prime: the same rise after prompts of the same theme with which the text has nothing to do.

    Args:
      before, after: of each prompt the log-probabilities of the keyword's tokens `[M]`, nats.
      cap: see `CAP`.
    Returns:
      Means over the prompts, each of which weighs the same.
    """
    if len(before) != len(after) or not before:
        raise UserError(f"priming score: {len(before)} prompts before but {len(after)} after")
    each = [memory_score(old, new, cap=cap) for old, new in zip(before, after, strict=True)]
    means = np.mean([(rise.ratio, rise.log_ratio, rise.capped) for rise in each], axis=0)
    return Rise(*map(float, means))


@dataclass(frozen=True)
class PrimingCorrelation:
    """Does a keyword that was unlikely before prime more?

    Attributes:
      before: Spearman's correlation of log S_prime with log P_before, the published finding.
      before_p: its p-value.
      after: the same with log P_after alone: the control, since P_before is in S_prime's
        denominator and correlates with it mechanically.
      after_p: its p-value.
    """

    before: float
    before_p: float
    after: float
    after_p: float


def priming_correlation(
    log_prime: np.ndarray, log_before: np.ndarray, log_after: np.ndarray
) -> PrimingCorrelation:
    """Correlation of priming with how likely the keyword was, over texts.

    Args:
      log_prime: log S_prime of each text `[n]`, n >= 3.
      log_before, log_after: mean log-probability of its keyword before and after `[n]`, nats.
    Raises:
      UserError: fewer than three texts, or one of the three does not vary.
    """
    from scipy.stats import spearmanr

    columns = paired("priming", log_prime, log_before, log_after)
    if len(columns[0]) < 3 or min(np.ptp(column) for column in columns) == 0:
        raise UserError("priming: a correlation needs three texts that differ")
    found = [spearmanr(columns[0], column) for column in columns[1:]]
    values = [float(value) for pair in found for value in pair]  # pyright: ignore[reportArgumentType,reportGeneralTypeIssues]
    return PrimingCorrelation(*values)
