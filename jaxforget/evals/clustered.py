"""How sure an AUC is where examples come in clusters, such as all records about one person.

Examples about one person rise and fall together: an interval that draws them one by one is too
narrow. Here whole clusters are drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.evals.checks import checked


@dataclass(frozen=True)
class Area:
    """An AUC and what it might have been.

    Attributes:
      value: of the sample itself, in [0, 1].
      draws: float64 `[resamples]`, of samples of whole clusters; those of two areas over the same
        examples and seed are of the same samples, so that they may be subtracted.
    """

    value: float
    draws: np.ndarray

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """(low, high) of the percentile interval."""
        return interval(self.draws, confidence)


def clustered_auc(
    members: np.ndarray,
    others: np.ndarray,
    *,
    member_clusters: Sequence[object],
    other_clusters: Sequence[object],
    resamples: int = 2000,
    seed: int = 0,
) -> Area:
    """Probability that a member scores higher than another, ties counting one half.

    Args:
      members: scores `[n]`, higher is more like a member.
      others: scores `[m]`.
      member_clusters, other_clusters: hashable, `[n]` and `[m]`: equal ones are drawn together.
      resamples: >= 1.
      seed: of the draws, which depend on nothing else but the numbers of clusters.
    Returns:
      See `Area`. Members' and others' clusters are drawn apart, with replacement.
    Raises:
      UserError: fewer than two clusters on a side, a value that is not finite.
    """
    scores = [checked("AUC", side) for side in (members, others)]
    places = [_places(each) for each in (member_clusters, other_clusters)]
    if min(len(np.unique(each)) for each in places) < 2:
        raise UserError("AUC: an interval needs at least two clusters on each side")
    if any(len(place) != len(side) for place, side in zip(places, scores, strict=True)):
        raise UserError("AUC: every example needs a cluster")
    one, other = (_indicator(each) for each in places)  # [clusters, n], [clusters, m]
    ahead = scores[0][:, None] > scores[1][None, :]
    level = scores[0][:, None] == scores[1][None, :]
    wins = one @ (ahead + 0.5 * level) @ other.T  # [clusters, clusters]
    rng = np.random.default_rng(seed)
    weights = [_drawn(rng, len(each), resamples) for each in (one, other)]
    pairs = (weights[0] @ one.sum(1)) * (weights[1] @ other.sum(1))
    draws = np.einsum("rg,gh,rh->r", weights[0], wins, weights[1]) / pairs
    return Area(float(wins.sum() / (len(scores[0]) * len(scores[1]))), draws)


def mean_area(areas: Sequence[Area]) -> Area:
    """The mean of AUCs of independent samples, such as of several seeds."""
    return Area(
        float(np.mean([each.value for each in areas])),
        np.mean([each.draws for each in areas], axis=0),
    )


def difference(one: Area, other: Area) -> Area:
    """One less the other, draw by draw; of the same examples, clusters and seed."""
    return Area(one.value - other.value, one.draws - other.draws)


def interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high): quantiles that leave equal shares of the draws outside."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _places(clusters: Sequence[object]) -> np.ndarray:
    """Number of each example's cluster, in the order of their first examples."""
    found: dict[object, int] = {}
    return np.asarray([found.setdefault(each, len(found)) for each in clusters], np.int64)


def _indicator(places: np.ndarray) -> np.ndarray:
    return (np.arange(places.max() + 1)[:, None] == places[None, :]).astype(np.float64)


def _drawn(rng: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """How often each cluster is drawn, `[resamples, count]`."""
    return rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)
