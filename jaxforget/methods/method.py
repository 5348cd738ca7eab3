"""A method ready to run, and how one is put together."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optax

from jaxforget import combiners
from jaxforget.combiners import Finisher, check_terms, weighted_sum
from jaxforget.data.triggers import Poison
from jaxforget.edits.compatibility import OwnText
from jaxforget.edits.material import Edit, NewToken
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.types import Combiner, Loop, Objective
from jaxforget.loops import PLAIN
from jaxforget.methods.finishing import FINISHERS, Measured, Prepare, finished
from jaxforget.objectives import Needs, ObjectiveSpec

COMBINERS: Mapping[str, Callable[..., Combiner]] = {
    "weighted_sum": weighted_sum,
    "agem": combiners.agem,
    "cagrad": combiners.cagrad,
    "gem": combiners.gem,
    "geometric_disentangle": combiners.geometric_disentangle,
    "gru": combiners.gru,
    "mgda": combiners.mgda,
    "nash_mtl": combiners.nash_mtl,
    "ogd": combiners.ogd,
    "pcgrad": combiners.pcgrad,
}
"""Combiners that `method.combiner` can name: factories from the weights of the terms."""


type Transform = Callable[[int], optax.GradientTransformation]
"""Steps of the run -> what is done to the direction before the optimizer."""


@dataclass(frozen=True)
class Method:
    """A method ready to run: training, an edit, or an edit after training.

    Attributes:
      name: as in the catalogue.
      objective: see `jaxforget.engine.types.Objective`; None: nothing is trained.
      combiner: see `jaxforget.engine.types.Combiner`.
      needs: data sets and reference scores that its training reads.
      whole: data sets that are read as a whole, by `edit` or `prepare`.
      loop: in which order it steps.
      planned: steps of the run -> `loop`, where it depends on them; None: it does not.
      edit: what is done to the whole model after the training, or None.
      prepare: what fills the combiner's state from the data before the first step, or None.
      transform: see `Transform`, or None.
      alternate: the alternate answers where none are configured.
      poison: how triggered copies of the forget set are made, the role "poisoned", or None.
      own_text: how the model writes the forget set itself, or None.
      weights_only: why it cannot work on low-rank factors; "" where it can.
      token: a token of its own that the edit teaches, or None.
    """

    name: str
    objective: Objective | None
    combiner: Combiner
    needs: Needs
    whole: tuple[str, ...] = ()
    loop: Loop = PLAIN
    edit: Edit | None = None
    prepare: Prepare | None = None
    transform: Transform | None = None
    alternate: str = "refusals"
    own_text: OwnText | None = None
    poison: Poison | None = None
    weights_only: str = ""
    token: NewToken | None = None
    planned: Callable[[int], Loop] | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """Data sets it reads, e.g. ("forget", "retain")."""
        return tuple(dict.fromkeys([*self.needs.roles, *self.whole]))

    @property
    def reference(self) -> Mapping[str, frozenset[str]]:
        """By role, which scores of the starting model it compares with."""
        return self.needs.reference


def from_parts(
    name: str,
    spec: ObjectiveSpec,
    combiner: Combiner,
    loop: Loop = PLAIN,
    *,
    finishers: Sequence[Finisher | Measured] = (),
    **more: Any,
) -> Method:
    """A method of one's own: any objective with any combiner and loop.

    Args:
      name: for messages and results.
      spec: objective and what it needs.
      combiner: see `jaxforget.combiners`.
      loop: see `jaxforget.loops`.
      finishers: transforms of the optimizer's update, in order; see `FINISHERS`.
      more: further attributes of `Method`.
    Raises:
      UserError: weights that do not name the objective's terms.
    """
    if combiner.weights is not None:
        check_terms(combiner.weights, spec.terms)
    whole = tuple(each.role for each in finishers if isinstance(each, Measured))
    combined, prepare = finished(combiner, finishers)
    return Method(name, spec.objective, combined, spec.needs, whole, loop, prepare=prepare, **more)


def make_combiner(choice: Any, weights: Mapping[str, float]) -> Combiner:
    """The combiner that a configuration names.

    Args:
      choice: a name of `COMBINERS`, a mapping with `name` and its parameters, or None for the
        weighted sum.
      weights: of the objective's terms.
    Raises:
      UserError: an unknown combiner or parameter, or a value it refuses.
    """
    return _made("method.combiner", choice or "weighted_sum", COMBINERS, weights)


def make_finishers(choices: Any) -> list[Finisher | Measured]:
    """The finishers that a configuration names, in order.

    Args:
      choices: a list whose entries are names of `FINISHERS` or mappings with `name` and
        parameters.
    Raises:
      UserError: no list, an unknown finisher or parameter, or a value it refuses.
    """
    if not isinstance(choices, (list, tuple)):
        raise UserError(f"method.finishers: must be a list, got {choices!r}")
    return [
        _made(f"method.finishers.{place}", choice, FINISHERS)
        for place, choice in enumerate(choices)
    ]


def _made[T](key: str, choice: Any, factories: Mapping[str, Callable[..., T]], *first: Any) -> T:
    """What `choice` names, made from `first` and the choice's parameters."""
    given = {"name": choice} if isinstance(choice, str) else choice
    if not isinstance(given, Mapping) or "name" not in given:
        raise UserError(
            f"{key}: must be a name or a mapping with a name, got {choice!r}. "
            f"Allowed: {', '.join(sorted(factories))}."
        )
    name, parameters = str(given["name"]), {k: v for k, v in given.items() if k != "name"}
    if name not in factories:
        raise UserError(f"{key}: there is no {name!r}. {did_you_mean(name, factories)}")
    signature = inspect.signature(factories[name])
    known = list(signature.parameters)[len(first) :]
    for parameter in parameters:
        if parameter not in known:
            raise UserError(
                f"{key}.{parameter}: {name} has no such key. {did_you_mean(parameter, known)}"
            )
    try:
        signature.bind(*first, **parameters)
    except TypeError as error:
        raise UserError(f"{key}: {name}: {error}") from None
    try:
        return factories[name](*first, **parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {name} refuses {parameters}: {error}") from None
