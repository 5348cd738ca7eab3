"""An objective together with what it needs, so that a study knows what to load and to cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxforget.engine.types import Objective


@dataclass(frozen=True)
class Needs:
    """What an objective reads.

    Attributes:
      roles: data sets, e.g. ("forget", "retain").
      reference: by role, the scores of the starting model it compares with: "logp" of every
        target, "hidden", the hidden states with the output head, "residual", the output of
        layer `residual`, and "values", see `values`. A role it does not compare is absent.
      aligned: roles whose example i is the partner of the forget set's example i; both are seen
        in the same step, row and segment.
      residual: the layer, where an inner one is read.
      values: (first layers, first positions) of the values whose norms are read, or None.
      random: roles compared with a randomly initialised model instead of the starting model.
    """

    roles: tuple[str, ...]
    reference: Mapping[str, frozenset[str]] = field(default_factory=dict)
    aligned: frozenset[str] = frozenset()
    residual: int | None = None
    random: frozenset[str] = frozenset()
    values: tuple[int, int] | None = None


@dataclass(frozen=True)
class ObjectiveSpec:
    """What the factories of `jaxforget.objectives` return.

    Attributes:
      objective: see `jaxforget.engine.types.Objective`; its terms are not weighted.
      needs: see `Needs`.
      terms: names of the terms it returns, in order.
    """

    objective: Objective
    needs: Needs
    terms: tuple[str, ...]
