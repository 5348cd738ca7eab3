"""A method ready to run, and how one is put together."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxforget import combiners
from jaxforget.combiners import check_terms, weighted_sum
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.types import Combiner, Loop, Objective
from jaxforget.loops import PLAIN
from jaxforget.objectives import Needs, ObjectiveSpec

COMBINERS: Mapping[str, Callable[..., Combiner]] = {
    "weighted_sum": weighted_sum,
    "pcgrad": combiners.pcgrad,
    "cagrad": combiners.cagrad,
    "mgda": combiners.mgda,
    "nash_mtl": combiners.nash_mtl,
    "geometric_disentangle": combiners.geometric_disentangle,
}
"""Combiners that `method.combiner` can name: factories from the weights of the terms."""


@dataclass(frozen=True)
class Method:
    """A method ready to run.

    Attributes:
      name: as in the catalogue.
      objective: see `jaxforget.engine.types.Objective`.
      combiner: see `jaxforget.engine.types.Combiner`.
      needs: data sets and reference scores it reads.
      loop: in which order it steps.
    """

    name: str
    objective: Objective
    combiner: Combiner
    needs: Needs
    loop: Loop = PLAIN

    @property
    def roles(self) -> tuple[str, ...]:
        """Data sets it reads, e.g. ("forget", "retain")."""
        return self.needs.roles

    @property
    def reference(self) -> Mapping[str, frozenset[str]]:
        """By role, which scores of the starting model it compares with."""
        return self.needs.reference


def from_parts(name: str, spec: ObjectiveSpec, combiner: Combiner, loop: Loop = PLAIN) -> Method:
    """A method of one's own: any objective with any combiner and loop.

    Args:
      name: for messages and results.
      spec: objective and what it needs.
      combiner: see `jaxforget.combiners`.
      loop: see `jaxforget.loops`.
    Raises:
      UserError: weights that do not name the objective's terms.
    """
    if combiner.weights is not None:
        check_terms(combiner.weights, spec.terms)
    return Method(name, spec.objective, combiner, spec.needs, loop)


def make_combiner(choice: Any, weights: Mapping[str, float]) -> Combiner:
    """The combiner that a configuration names.

    Args:
      choice: a name of `COMBINERS`, a mapping with `name` and its parameters, or None for the
        weighted sum.
      weights: of the objective's terms.
    Raises:
      UserError: an unknown combiner or parameter, or a value it refuses.
    """
    given = {"name": "weighted_sum"} if choice is None else choice
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or "name" not in given:
        raise UserError(
            f"method.combiner: must be a name or a mapping with a name, got {choice!r}. "
            f"Allowed: {', '.join(sorted(COMBINERS))}."
        )
    name, parameters = str(given["name"]), {k: v for k, v in given.items() if k != "name"}
    if name not in COMBINERS:
        raise UserError(f"method.combiner: no combiner {name!r}. {did_you_mean(name, COMBINERS)}")
    factory = COMBINERS[name]
    known = [each for each in inspect.signature(factory).parameters if each != "weights"]
    for key in parameters:
        if key not in known:
            raise UserError(
                f"method.combiner.{key}: {name} has no such key. {did_you_mean(key, known)}"
            )
    return factory(weights, **parameters)
