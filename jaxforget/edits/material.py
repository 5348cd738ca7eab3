"""What an edit reads: a model and whole passes over its data sets."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jax import Array

from jaxforget.engine.tree import Params
from jaxforget.engine.types import Metrics, ScoreFn, TokenBatch

PLAIN, FORMS = "token_plain", "token_forms"
QUESTIONS, EARLIER = "token_questions", "token_earlier_questions"
"""Data sets that a study prepares for a `NewToken`."""


@dataclass(frozen=True)
class NewToken:
    """A token that an edit teaches the model and has it say.

    The model's vocabulary holds it before the edit, one a request to forget. The edit finds, by
    role: `PLAIN`, prompts of the forget set with the token, a refusal and the token, and `FORMS`,
    the same also in the chat form where there is one; of both the refusal and the closing token
    are labelled. `QUESTIONS`, the prompts and neutral words behind them, labelled with the token
    at the prompt's end and at their own; `EARLIER`, the same of earlier requests, if there are.

    Attributes:
      text: how the first request's is spelt; later ones are numbered.
      neutral: the neutral words.
    """

    text: str
    neutral: str


class Passes(Protocol):
    """Passes over the data set of a role, each example once, on the devices."""

    def __call__(self, role: str, *, singly: bool = False, epochs: int = 1) -> Iterable[TokenBatch]:
        """Batches of one shape.

        Args:
          role: of the data set.
          singly: one example a row, in the order of one pass; otherwise `train.batch_size`
            examples a batch, packed.
          epochs: passes; each has an order of its own. One, where `singly`.
        """
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
      roles: of the data sets there are.
    """

    score: ScoreFn
    params: Params
    frozen: Params
    tuned: Params
    passes: Passes
    key: Array
    ids: Callable[[str], Sequence[int]]
    roles: tuple[str, ...] = ()


type Edit = Callable[[Material], tuple[Params, Metrics]]
"""Material -> (the changed leaves, scalars to report)."""
