"""What an edit reads: a model and whole passes over its data sets."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jax import Array

from jaxforget.engine.tree import Params
from jaxforget.engine.types import Metrics, ScoreFn, TokenBatch


class Passes(Protocol):
    """One pass over the data set of a role, each example once, on the devices."""

    def __call__(self, role: str, *, singly: bool = False) -> Iterable[TokenBatch]:
        """Batches of one shape and of `train.batch_size` examples, or of one example a row."""
        ...


@dataclass(frozen=True)
class Material:
    """A model and its data, for what is done to whole sets instead of batch by batch.

    Attributes:
      score: the model as a function of all its leaves.
      params: leaves that may be changed, of the starting model.
      frozen: the other leaves.
      tuned: the same leaves after the training that comes before the edit; `params` if none does.
      passes: see `Passes`.
      key: for what is random.
      ids: role -> a number for each example of its set, as recorded updates name them.
    """

    score: ScoreFn
    params: Params
    frozen: Params
    tuned: Params
    passes: Passes
    key: Array
    ids: Callable[[str], Sequence[int]]


type Edit = Callable[[Material], tuple[Params, Metrics]]
"""Material -> (the changed leaves, scalars to report)."""
