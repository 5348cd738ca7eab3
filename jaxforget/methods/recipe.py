"""What an entry of the catalogue consists of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxforget.combiners import Finisher
from jaxforget.data.triggers import Poison
from jaxforget.edits.compatibility import OwnText
from jaxforget.edits.material import Edit, NewToken
from jaxforget.engine.types import Combiner, Loop
from jaxforget.loops import PLAIN
from jaxforget.methods.finishing import Measured
from jaxforget.methods.method import Transform
from jaxforget.objectives import ObjectiveSpec


@dataclass(frozen=True)
class Built:
    """What a recipe makes of its parameters.

    Attributes:
      spec: objective and what it needs.
      weights: of its terms.
      combiner: the method's own; None: the weighted sum, or what the user attaches.
      loop: in which order it steps.
      planned: steps of the run -> `loop`, where it depends on them; None: it does not.
      finishers: the method's own transforms of the update.
      transform: of the direction before the optimizer, see `Transform`.
      edit: of the whole model, after the training where there is one.
      whole: data sets that the edit reads.
      poison: how triggered copies of the forget set are made.
      own_text: how the model writes the forget set itself, see `OwnText`.
      token: a token of its own that the edit teaches, see `NewToken`, or None.
    """

    spec: ObjectiveSpec | None
    weights: Mapping[str, float] = field(default_factory=dict)
    combiner: Combiner | None = None
    loop: Loop = PLAIN
    finishers: tuple[Finisher | Measured, ...] = ()
    transform: Transform | None = None
    edit: Edit | None = None
    whole: tuple[str, ...] = ()
    own_text: OwnText | None = None
    poison: Poison | None = None
    token: NewToken | None = None
    planned: Callable[[int], Loop] | None = None


@dataclass(frozen=True)
class Recipe:
    """One entry of the catalogue.

    Attributes:
      title: the method's usual name.
      paper: authors, year, arXiv id.
      formula: what is minimised, in one line.
      parameters: dataclass of its parameters with the paper's defaults.
      build: parameters -> what it is made of.
      cost: per step, in forward (F) and backward (B) passes over a batch of each role.
      alternate: the alternate answers where none are configured.
      weights_only: why it cannot work on low-rank factors; "" where it can.
    """

    title: str
    paper: str
    formula: str
    parameters: type
    build: Callable[[Any], Built]
    cost: str = "1F + 1B"
    alternate: str = "refusals"
    weights_only: str = ""


def weighted(make: Callable[[Any], ObjectiveSpec]) -> Callable[[Any], Built]:
    """A recipe whose terms weigh `<term>_weight`, 1 where there is no such parameter."""

    def build(parameters: Any) -> Built:
        spec = make(parameters)
        weights = {term: getattr(parameters, f"{term}_weight", 1.0) for term in spec.terms}
        return Built(spec, weights)

    return build
