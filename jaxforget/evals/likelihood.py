"""Probabilities of answers, perplexity and truth ratios, from one teacher-forced pass."""

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.evals.checks import checked, paired

_TINY = 1e-10  # the peer's guard against division by zero, which biases vanishing probabilities
_FARTHEST = 700.0  # exp of it is still finite


def mean_nll(logp: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of each example's targets.

    Args:
      logp: `[M]`, nats.
      offsets: int `[n + 1]`; every example has at least one target.
    Returns:
      float64 `[n]`, nats per token.
    Raises:
      UserError: no example, an example without targets, or a value that is not finite.
    """
    return -_sums(logp, offsets) / np.diff(offsets)


def _sums(logp: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    values, counts = checked("negative log-likelihood", logp), np.diff(offsets)
    if not counts.size or counts.min() < 1:
        empty = int(counts.argmin()) if counts.size else 0
        raise UserError(f"negative log-likelihood: example {empty} has no target")
    return np.add.reduceat(values, offsets[:-1])


def probability(nll: np.ndarray) -> np.ndarray:
    """Length-normalised probability of each answer, exp(-mean NLL), in [0, 1].

    Args:
      nll: `[n]`, mean NLL per token, nats.
    Source: Maini et al. 2024 (arXiv 2401.06121), section 2.2.
    """
    return np.exp(-checked("probability", nll))


def sequence_probability(logp: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Probability of each whole answer, the product over its tokens, in [0, 1].

    Args:
      logp, offsets: as for `mean_nll`.
    """
    return np.exp(_sums(logp, offsets))


def perplexity(logp: np.ndarray) -> float:
    """exp of the mean NLL over all targets `[M]` (nats) together; >= 1."""
    return float(perplexities(-checked("perplexity", logp).mean(keepdims=True))[0])


def perplexities(nll: np.ndarray) -> np.ndarray:
    """Perplexity of each answer, exp(mean NLL); >= 1, infinite where that overflows.

    Args:
      nll: `[n]`, mean NLL per token, nats.
    """
    with np.errstate(over="ignore"):
        return np.exp(checked("perplexity", nll))


def option_probability(
    correct: np.ndarray, wrong: np.ndarray, *, peer_compat: bool = False
) -> np.ndarray:
    """Probability of the right answer among its options: p / (p + sum of wrong p).

    Args:
      correct: `[n]`, length-normalised probabilities.
      wrong: `[n]`, for each example the sum over its wrong options.
      peer_compat: the peer's denominator, 1e-10 larger: options that all are unlikely lose.
    Returns:
      float64 `[n]` in [0, 1]; 0 where no option has any probability.
    """
    right, others = paired("option probability", correct, wrong)
    total = right + others + (_TINY if peer_compat else 0.0)
    return np.divide(right, total, out=np.zeros_like(right), where=total > 0)


def truth_ratio(
    correct_nll: np.ndarray, wrong_nll: np.ndarray, *, peer_compat: bool = False
) -> np.ndarray:
    """How much likelier the wrong answers are than the right one; 1 is ignorance.

    The wrong answers' mean is the geometric one of the TOFU code and the peer; the paper's
    formula is `paper_truth_ratio`.

    Args:
      correct_nll: `[n]`, mean NLL per token of the (paraphrased) right answer, nats.
      wrong_nll: `[n]`, mean over the wrong answers of their mean NLL.
      peer_compat: the peer's denominator, 1e-10 larger: where a model finds everything unlikely
        (NLL above 23 nats a token) its ratio falls to 0 instead of staying what it is.
    Returns:
      float64 `[n]`, >= 0 and finite: beyond exp(+-700) it stays there.
    Source: Maini et al. 2024, eq. 1.
    """
    correct, wrong = paired("truth ratio", correct_nll, wrong_nll)
    if peer_compat:
        return np.exp(-wrong) / (np.exp(-correct) + _TINY)
    return np.exp(np.clip(correct - wrong, -_FARTHEST, _FARTHEST))


def paper_truth_ratio(
    correct_nll: np.ndarray, wrong_nll: np.ndarray, owner: np.ndarray
) -> np.ndarray:
    """The truth ratio as the paper writes it: the wrong answers' probabilities are averaged.

    It is never below `truth_ratio`, which averages their logarithms.

    Args:
      correct_nll: `[n]`, mean NLL per token of the (paraphrased) right answer, nats.
      wrong_nll: `[m]`, mean NLL per token of every wrong answer, nats.
      owner: int `[m]`, the example each wrong answer belongs to; every example has one.
    Returns:
      float64 `[n]`, >= 0 and finite: beyond exp(+-700) it stays there.
    Raises:
      UserError: an example without wrong answer, or a value that is not finite.
    Source: Maini et al. 2024 (arXiv 2401.06121), eq. 1.
    """
    correct = checked("truth ratio", correct_nll)
    wrong, owner = checked("truth ratio", wrong_nll), np.asarray(owner)
    counts = np.bincount(owner, minlength=len(correct))
    if counts.min() < 1 or len(counts) > len(correct):
        raise UserError(f"truth ratio: example {counts.argmin()} has no wrong answer")
    best = np.full(len(correct), np.inf)
    np.minimum.at(best, owner, wrong)
    shares = np.bincount(owner, np.exp(best[owner] - wrong), len(correct)) / counts
    return np.exp(np.clip(correct - best + np.log(shares), -_FARTHEST, _FARTHEST))


def closer_to_one(ratios: np.ndarray, *, peer_compat: bool = False) -> float:
    """Mean of min(R, 1/R), in [0, 1]: the forget set's aggregate, 1 where nothing is known.

    Args:
      ratios: `[n]`, >= 0.
      peer_compat: the peer's 1/(R + 1e-10).
    """
    return float(closeness(ratios, peer_compat=peer_compat).mean())


def closeness(ratios: np.ndarray, *, peer_compat: bool = False) -> np.ndarray:
    """min(R, 1/R) of each example; see `closer_to_one`."""
    ratios = checked("truth ratio", ratios)
    guard = _TINY if peer_compat else 0.0
    inverse = np.divide(1.0, ratios + guard, out=np.full_like(ratios, np.inf), where=ratios > 0)
    return np.minimum(ratios, inverse)


def true_better(ratios: np.ndarray) -> float:
    """Mean of max(0, 1 - R), in [0, 1]: the kept sets' aggregate, 1 where truth is preferred."""
    return float(np.maximum(0, 1 - checked("truth ratio", ratios)).mean())


def probability_mean(
    correct_nll: np.ndarray, wrong_nll: np.ndarray, *, peer_compat: bool = False
) -> float:
    """Mean of correct / (correct + wrong), in [0, 1]: the peer's newer aggregate.

    Args:
      correct_nll, wrong_nll, peer_compat: as for `truth_ratio`.
    """
    correct, wrong = paired("truth ratio", correct_nll, wrong_nll)
    if peer_compat:
        right, others = np.exp(-correct), np.exp(-wrong)
        return float((right / (right + others + _TINY)).mean())
    apart = np.clip(correct - wrong, -_FARTHEST, _FARTHEST)
    return float((1 / (1 + np.exp(apart))).mean())
