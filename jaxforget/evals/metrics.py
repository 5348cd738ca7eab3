"""Metrics as pure functions on NumPy arrays, in float64 on the host.

Per-example functions take flat per-target arrays and `offsets` (example i owns the slice
`offsets[i]:offsets[i + 1]`); aggregates take per-example arrays and return a float.
"""

from collections.abc import Mapping

import numpy as np

from jaxforget.engine.errors import UserError

_TINY = 1e-10  # the peer's guard against division by zero, kept so that values agree

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
    counts = np.diff(offsets)
    values = _checked("negative log-likelihood", np.asarray(logp, np.float64))
    if counts.min() < 1:
        raise UserError(f"negative log-likelihood: example {counts.argmin()} has no target")
    return -np.add.reduceat(values, offsets[:-1]) / counts


def probability(nll: np.ndarray) -> np.ndarray:
    """Length-normalised probability of each answer, exp(-mean NLL), in [0, 1].

    Args:
      nll: `[n]`, mean NLL per token, nats.
    Source: Maini et al. 2024 (arXiv 2401.06121), section 2.2.
    """
    return np.exp(-_checked("probability", nll))


def perplexity(logp: np.ndarray) -> float:
    """exp of the mean NLL over all targets `[M]` (nats) together; >= 1."""
    return float(np.exp(-_checked("perplexity", logp).mean()))


def option_probability(correct: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Probability of the right answer among its options: p / (p + sum of wrong p).

    Args:
      correct: `[n]`, length-normalised probabilities.
      wrong: `[n]`, for each example the sum over its wrong options.
    """
    p = _checked("option probability", correct)
    return p / (p + _checked("option probability", wrong) + _TINY)


def truth_ratio(correct_nll: np.ndarray, wrong_nll: np.ndarray) -> np.ndarray:
    """How much likelier the wrong answers are than the right one; 1 is ignorance.

    Args:
      correct_nll: `[n]`, mean NLL per token of the (paraphrased) right answer, nats.
      wrong_nll: `[n]`, mean over the wrong answers of their mean NLL: the geometric mean of
        their probabilities, as the peer computes it.
    Returns:
      float64 `[n]`, >= 0.
    Source: Maini et al. 2024, eq. 1.
    """
    wrong = np.exp(-_checked("truth ratio", wrong_nll))
    return wrong / (np.exp(-_checked("truth ratio", correct_nll)) + _TINY)


def closer_to_one(ratios: np.ndarray) -> float:
    """Mean of min(R, 1/R), in [0, 1]: the forget set's aggregate, 1 where nothing is known."""
    ratios = _checked("truth ratio", ratios)
    return float(np.minimum(ratios, 1 / (ratios + _TINY)).mean())


def true_better(ratios: np.ndarray) -> float:
    """Mean of max(0, 1 - R), in [0, 1]: the kept sets' aggregate, 1 where truth is preferred."""
    return float(np.maximum(0, 1 - _checked("truth ratio", ratios)).mean())


def probability_mean(correct_nll: np.ndarray, wrong_nll: np.ndarray) -> float:
    """Mean of correct / (correct + wrong), in [0, 1]: the peer's newer aggregate.

    Args:
      correct_nll, wrong_nll: as for `truth_ratio`.
    """
    correct = np.exp(-_checked("truth ratio", correct_nll))
    wrong = np.exp(-_checked("truth ratio", wrong_nll))
    return float((correct / (correct + wrong + _TINY)).mean())


def exact_memorization(hits: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Share of an answer's tokens that are the model's first choice, in [0, 1].

    The last target (the end of the answer) is left out, as in the peer; an example of which
    nothing is left scores 0.

    Args:
      hits: `[M]`, 1 where the arg-max is the target.
      offsets: int `[n + 1]`.
    Returns:
      float64 `[n]`.
    """
    return np.asarray([part.mean() if len(part) else 0.0 for part in _bodies(hits, offsets)])


def extraction_strength(
    hits: np.ndarray, offsets: np.ndarray, *, peer_compat: bool = False
) -> np.ndarray:
    """1 - k/n with k the shortest prefix after which greedy decoding gives the rest, in [0, 1].

    The last target is left out as in `exact_memorization`. Where even the last token is wrong,
    k = n and the score is 0; the peer's loop ends at k = n - 1, so its floor is 1/n.

    Args:
      hits, offsets: as for `exact_memorization`.
      peer_compat: the peer's floor.
    Source: Carlini et al. 2021 (arXiv 2012.07805), as used by open-unlearning.
    """
    scores = []
    for body in _bodies(hits, offsets):
        misses = np.nonzero(body < 0.5)[0]
        suffix = len(body) - (misses[-1] + 1) if len(misses) else len(body)
        if peer_compat and len(body):
            suffix = max(suffix, 1)
        scores.append(suffix / len(body) if len(body) else 0.0)
    return np.asarray(scores)


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

    ours, theirs = (_checked("forget quality", each) for each in (ratios, oracle_ratios))
    return float(ks_2samp(ours, theirs).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def harmonic_mean(parts: Mapping[str, float]) -> float:
    """Harmonic mean of numbers >= 0; 0 where any is 0."""
    values = _checked("model utility", np.asarray(list(parts.values()), np.float64))
    if values.min() < 0:
        raise UserError(f"model utility: a part is below 0: {dict(parts)}")
    if values.min() == 0:
        return 0.0
    return float(len(values) / (1 / values).sum())


def _bodies(hits: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """Each example's hits without the last."""
    values = _checked("memorisation", hits)
    return [values[a : max(a, b - 1)] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def _checked(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if not values.size:
        raise UserError(f"{name}: there is nothing to average (empty set)")
    if not np.isfinite(values).all():
        where = int(np.argmin(np.isfinite(values)))
        raise UserError(f"{name}: value {where} is {values.flat[where]}; the model is broken")
    return values
