"""Parts of objectives: each is one term, with the roles it reads and what it compares with.

A part's value is the batch's share of a mean over the step (see `shares`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.engine.types import (
    Batches,
    Metrics,
    Objective,
    Reference,
    ReferenceScores,
    ScoreFn,
    Scores,
    Terms,
)
from jaxforget.objectives.roles import score_roles
from jaxforget.objectives.shares import labelled_count
from jaxforget.objectives.spec import Needs, ObjectiveSpec

type Value = Callable[[Mapping[str, Scores], Reference], tuple[Array, Metrics]]


@dataclass(frozen=True)
class Part:
    """One term of an objective.

    Attributes:
      roles: data sets it reads.
      value: (scores by role, reference by role) -> (share of the term, metrics).
      reference: by role, what it compares with of the starting model; see `Needs`.
      aligned: roles whose examples are partners of the forget set's; see `Needs`.
      residual: layer whose output it reads, or None.
      values: (first layers, first positions) of the values whose norms it reads, or None.
      random: compares with a randomly initialised model instead of the starting model.
    """

    roles: tuple[str, ...]
    value: Value
    reference: Mapping[str, frozenset[str]] = field(default_factory=dict)
    aligned: frozenset[str] = frozenset()
    residual: int | None = None
    random: bool = False
    values: tuple[int, int] | None = None


def assemble(parts: Mapping[str, Part | None], *, together: bool = True) -> ObjectiveSpec:
    """An objective of named parts, from one forward pass over all their roles.

    Where no two parts read the same role, a combiner that asks for every term's own gradient gets
    it from a pass over that term's rows alone.

    Args:
      parts: by name of the term, in order; None is left out.
      together: see `score_roles`.
    Returns:
      A spec whose metrics are the parts' and `<role>_tokens`, labelled targets of each role.
    Raises:
      UserError: no part, or parts that read different layers.
    """
    terms = {name: part for name, part in parts.items() if part is not None}
    if not terms:
        raise UserError("an objective needs at least one term")
    roles = _roles(terms)
    layers = {part.residual for part in terms.values() if part.residual is not None}
    if len(layers) > 1:
        raise UserError(f"terms of one objective must read the same layer, not {sorted(layers)}")
    residual = next(iter(layers), None)
    read = {part.values for part in terms.values() if part.values is not None}
    if len(read) > 1:
        raise UserError(f"terms of one objective must read the same values, not {sorted(read)}")
    values = next(iter(read), None)
    options: dict[str, Any] = {} if residual is None else {"residual": residual}
    options |= {} if values is None else {"values": values}
    needs = replace(_needs(roles, terms, residual), values=values)
    return ObjectiveSpec(Assembled(terms, options, together), needs, tuple(terms))


@dataclass(frozen=True, eq=False)
class Assembled:
    """An objective of named parts; see `assemble`.

    Attributes:
      terms: the parts by name.
      options: what the model is asked for besides log-probabilities.
      together: see `score_roles`.
    """

    terms: Mapping[str, Part]
    options: Mapping[str, Any]
    together: bool

    @property
    def roles(self) -> tuple[str, ...]:
        """Data sets that it reads."""
        return _roles(self.terms)

    @property
    def apart(self) -> Mapping[str, Objective] | None:
        """See `jaxforget.engine.types.Separable`."""
        read = [role for part in self.terms.values() for role in part.roles]
        if len(self.terms) < 2 or len(set(read)) < len(read):
            return None
        return {name: replace(self, terms={name: part}) for name, part in self.terms.items()}

    def __call__(
        self, score: ScoreFn, params: Params, batches: Batches, cached: Reference
    ) -> tuple[Terms, Metrics]:
        """See `jaxforget.engine.types.Objective`."""
        roles = self.roles
        scores = score_roles(score, params, batches, roles, together=self.together, **self.options)
        metrics: Metrics = {}
        found: Terms = {}
        for name, part in self.terms.items():
            found[name], more = part.value(scores, cached)
            metrics |= more
        tokens = {f"{role}_tokens": labelled_count(scores[role]) for role in roles}
        return found, {**metrics, **tokens}


def _roles(terms: Mapping[str, Part]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(role for part in terms.values() for role in part.roles))


def _needs(roles: tuple[str, ...], terms: Mapping[str, Part], residual: int | None) -> Needs:
    reference: dict[str, frozenset[str]] = {}
    for part in terms.values():
        for role, fields in part.reference.items():
            reference[role] = reference.get(role, frozenset()) | fields
    aligned = frozenset().union(*(part.aligned for part in terms.values()))
    random = _compared(terms, random=True)
    both = random & _compared(terms, random=False)
    if both:
        raise UserError(
            f"terms compare {sorted(both)} with the starting model and with a random one; only "
            "one of them can be cached for a role"
        )
    return Needs(roles, reference, aligned, residual, random)


def _compared(terms: Mapping[str, Part], *, random: bool) -> frozenset[str]:
    roles = (part.reference for part in terms.values() if part.random == random)
    return frozenset(role for reference in roles for role in reference)


def reference_of(reference: Reference, role: str, scores: Scores) -> ReferenceScores:
    """The starting model's scores of a role, in the same slots as the model's.

    Raises:
      UserError: there are none, or they were made from another batch.
    """
    if role not in reference:
        raise UserError(f"the objective needs reference scores of {role!r}: cache them first")
    found = reference[role]
    if found.logp.shape != scores.logp.shape:
        raise UserError(
            f"the reference of {role!r} has slots {found.logp.shape}, the scores "
            f"{scores.logp.shape}; they must be made from the same packed batch"
        )
    return found
