"""Who is told from whom by some features, by a classifier that never saw the people in question."""

from collections.abc import Sequence

import numpy as np

from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError


def clusters_of(records: Sequence[Record], column: str) -> list[object]:
    """What keeps records together: the value of a column, or, without it, the record alone."""
    return [
        record.extra[column] if column in record.extra else (record.source, record.row)
        for record in records
    ]


def told(
    sets: Sequence[np.ndarray],
    clusters: Sequence[Sequence[object]],
    *,
    folds: int,
    repeats: int,
    penalty: float,
    seed: int,
) -> list[np.ndarray]:
    """To which of some sets a classifier takes each example to belong, without having seen it.

    A logistic regression on standardised features, all sets of equal weight; no cluster is in the
    training and the test part of one fold.

    Args:
      sets: features `[n_i, F]` of two sets or more.
      clusters: by set, hashable, `[n_i]`; equal ones, of whatever set, stay in one fold.
      folds: >= 2; at most as many as the set of the fewest clusters has.
      repeats: >= 1, of the whole, with other folds; the mean counts.
      penalty: weight of the squared norm, > 0.
      seed: of the folds.
    Returns:
      By set, float64 `[n_i, len(sets)]`: probabilities.
    Raises:
      UserError: a set of fewer than two clusters.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fewest = min(len(set(each)) for each in clusters)
    if fewest < 2:
        raise UserError("classifier: a set needs at least two clusters of records (say, people)")
    features = np.concatenate(sets)
    truth = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
    rng = np.random.default_rng(seed)
    classifier = LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=2000)
    found = np.zeros((len(features), len(sets)))
    for _ in range(repeats):
        found += cross_val_predict(
            make_pipeline(StandardScaler(), classifier),
            features,
            truth,
            cv=PredefinedSplit(_dealt(clusters, min(folds, fewest), rng)),
            method="predict_proba",
        )
    chance = np.round(found / repeats, 9)  # what is equal but for rounding is equal
    return np.split(chance, np.cumsum([len(each) for each in sets])[:-1])


def _dealt(
    clusters: Sequence[Sequence[object]], folds: int, rng: np.random.Generator
) -> np.ndarray:
    """The fold of every example: the clusters of each set are shuffled and dealt out in turn."""
    fold: dict[object, int] = {}
    for each in clusters:
        fresh = [name for name in dict.fromkeys(each) if name not in fold]
        order = rng.permutation(len(fresh))
        fold |= {fresh[at]: turn % folds for turn, at in enumerate(order.tolist())}
    return np.asarray([fold[name] for each in clusters for name in each])
