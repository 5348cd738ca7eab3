"""Are the metrics themselves to be trusted? Faithfulness and robustness of every metric.

A metric counts here by what it says of the knowledge that is left: turned, where needed, so that
more is more knowledge and 0 is none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxforget.evals.privacy import roc_auc

type Metrics = Mapping[str, float | None]


def _same(value: float) -> float:
    return value


def _complement(value: float) -> float:
    return 1 - value


def _inverse(value: float) -> float:
    return 1 / value


KNOWLEDGE: Mapping[str, Callable[[float], float]] = {
    "forget_prob": _same,
    "forget_paraphrase_prob": _same,
    "forget_perplexity": _inverse,
    "forget_rouge": _same,
    "forget_refusal_rate": _complement,
    "forget_truth_ratio": _complement,
    "forget_paper_truth_ratio": _complement,
    "forget_truth_probability": _same,
    "forget_quality": _complement,
    "extraction_strength": _same,
    "exact_memorization": _same,
    "mia_loss_auc": _same,
    "mia_zlib_auc": _same,
    "mia_min_k_auc": _same,
    "mia_min_k_plus_plus_auc": _same,
    "mia_reference_auc": _same,
}
"""What makes each metric of the suite a measure of knowledge."""


@dataclass(frozen=True)
class Altered:
    """A model's metrics before and after something was done to it.

    Attributes:
      name: of the model.
      before, after: metrics by name, as the suite gives them.
    """

    name: str
    before: Metrics
    after: Metrics


@dataclass(frozen=True)
class Verdict:
    """What a metric is worth; each in [0, 1], higher is better, None where it cannot be told.

    Attributes:
      metric: its name.
      faithfulness: probability that a model that had the knowledge scores higher than one that
        never did, see `roc_auc`.
      relearning, quantisation: robustness to either, mean over all unlearned models; arXiv
        2605.24614 leaves out those of low utility and those that the metric takes for knowing.
      robustness: harmonic mean of both (eq. 4 of the paper).
      overall: harmonic mean of faithfulness and robustness.
    """

    metric: str
    faithfulness: float | None
    relearning: float | None
    quantisation: float | None
    robustness: float | None
    overall: float | None


def knowledge(metrics: Metrics, name: str) -> float | None:
    """A metric as a measure of knowledge; None where the suite has none."""
    value = metrics.get(name)
    return None if value is None else KNOWLEDGE[name](float(value))


def relearning_robustness(change: float, oracle_change: float) -> float:
    """How much of what relearning raises in an unlearned model it raises in one that never knew.

    Args:
      change: rise of the measure of knowledge in the unlearned model.
      oracle_change: in the model that never knew, trained alike.
    Returns:
      min(oracle_change / change, 1), at least 0: a metric that said the knowledge was gone where
      it was hidden rises faster than in the model that has to learn it. 1 where nothing rises.
    Source: Dorna et al. 2025, OpenUnlearning (arXiv 2506.12618), section 4.1, eq. 2, as the code of
      arXiv 2605.24614 quotes it: the ratio and its bound of 1. Chosen here: the bound of 0, and 1
      where nothing rises.
    """
    if change <= 0:
        return 1.0
    return float(np.clip(oracle_change / change, 0, 1))


def quantisation_robustness(before: float, after: float) -> float:
    """How much of what rounding shows of an unlearned model was to be seen without it.

    Args:
      before, after: measure of knowledge, >= 0, of the unlearned model and of the same rounded.
    Returns:
      min(before / after, 1); 1 where nothing is seen after it. A metric that falls counts as
      robust: that it may have broken is not seen (arXiv 2605.24614 therefore turns to a symmetric
      measure).
    Source: as `relearning_robustness`, eq. 3; 1 where nothing is seen is chosen here.
    """
    if after <= 0:
        return 1.0
    return float(np.clip(before / after, 0, 1))


def harmonic(*parts: float | None) -> float | None:
    """Harmonic mean of values in [0, 1]; 0 where one is, None where one is missing."""
    values = [part for part in parts if part is not None]
    if len(values) < len(parts):
        return None
    return float(len(values) / sum(1 / value for value in values)) if all(values) else 0.0


def judged(
    knowing: Sequence[Metrics],
    ignorant: Sequence[Metrics],
    relearned: Sequence[Altered],
    oracle: Altered,
    rounded: Sequence[Altered],
) -> list[Verdict]:
    """Every metric that all models have, best first.

    Args:
      knowing, ignorant: metrics of the models of either pool, one each at least.
      relearned: unlearned models before and after a little training on what they forgot.
      oracle: a model that never knew, before and after the same training.
      rounded: unlearned models before and after quantisation.
    Returns:
      Verdicts by `overall`, those that have none last.
    """
    found = []
    for name in KNOWLEDGE:
        pools = [_known(pool, name) for pool in (knowing, ignorant)]
        if not all(pools):
            continue
        faithfulness = float(roc_auc(*(np.asarray(pool) for pool in pools)))
        change = _changes([oracle], name)
        relearning = _mean(
            [relearning_robustness(each, change[0]) for each in _changes(relearned, name)]
            if change
            else []
        )
        quantisation = _mean([quantisation_robustness(*pair) for pair in _pairs(rounded, name)])
        robustness = harmonic(relearning, quantisation)
        overall = harmonic(faithfulness, robustness)
        found.append(Verdict(name, faithfulness, relearning, quantisation, robustness, overall))
    return sorted(found, key=lambda each: (each.overall is None, -(each.overall or 0), each.metric))


def _known(pool: Sequence[Metrics], name: str) -> list[float]:
    return [value for each in pool if (value := knowledge(each, name)) is not None]


def _pairs(altered: Sequence[Altered], name: str) -> list[tuple[float, float]]:
    pairs = [(knowledge(each.before, name), knowledge(each.after, name)) for each in altered]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _changes(altered: Sequence[Altered], name: str) -> list[float]:
    return [after - before for before, after in _pairs(altered, name)]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
