"""What one family of metrics adds to a suite's result, and how such parts make one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxforget.evals.privacy import auc_interval, roc_auc
from jaxforget.evals.statistics import bootstrap


@dataclass(frozen=True)
class Part:
    """Metrics of one family.

    Attributes:
      means: per-example values `[n]` by metric, which is their mean.
      areas: (scores of members, scores of others) by metric, which is their AUC.
      values: further metrics; None where one could not be computed.
      reasons: for each None, why.
      rows: by set, columns of one value an example.
    """

    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    areas: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    values: Mapping[str, float | None] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Sequence[float] | np.ndarray]] = field(default_factory=dict)

    def metrics(self) -> dict[str, float | None]:
        """Every metric by name."""
        means = {name: float(values.mean()) for name, values in self.means.items()}
        areas = {name: float(roc_auc(*sides)) for name, sides in self.areas.items()}
        return {**means, **areas, **self.values}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap interval of every mean and area of two examples or more."""
        found = {name: bootstrap(values) for name, values in self.means.items() if len(values) > 1}
        for name, sides in self.areas.items():
            if min(map(len, sides)) > 1:
                found[name] = auc_interval(*sides)
        return {name: (each.low, each.high) for name, each in found.items()}


def joined(parts: Iterable[Part]) -> Part:
    """All of them as one; where two name the same metric or column the later one counts."""
    parts = list(parts)
    rows: dict[str, dict[str, Sequence[float] | np.ndarray]] = {}
    for part in parts:
        for name, columns in part.rows.items():
            rows.setdefault(name, {}).update(columns)
    return Part(
        {name: each for part in parts for name, each in part.means.items()},
        {name: each for part in parts for name, each in part.areas.items()},
        {name: each for part in parts for name, each in part.values.items()},
        {name: each for part in parts for name, each in part.reasons.items()},
        rows,
    )
