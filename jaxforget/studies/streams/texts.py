"""The text of a stream: what each task is trained on, junk mixed in and packed as asked, and what
is held out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxforget.config.stream import ContinualConfig
from jaxforget.data.mixture import blocks, mixed
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.sources import load_records
from jaxforget.data.stream import chosen, joined
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import RunDirectory
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.common import longest, tokens_of
from jaxforget.studies.streams.measures import limited


@dataclass(frozen=True)
class Read:
    """Records of a stream, by task as configured.

    Attributes:
      train, held: of each task.
      junk: of each task; None where it has none.
      also: of further held-out sets, by name.
    """

    train: Sequence[Sequence[Record]]
    held: Sequence[Sequence[Record]]
    junk: Sequence[Sequence[Record] | None]
    also: Mapping[str, Sequence[Record]]

    @property
    def trained(self) -> list[Record]:
        """All that a tokenizer may be made from, whatever the share of junk."""
        parts = [*self.train, *(each or () for each in self.junk)]
        return [record for part in parts for record in part]


@dataclass(frozen=True)
class Texts:
    """The same as tokens.

    Attributes:
      train: what each task is trained on.
      held: what it is measured on.
      also: further sets that are measured, by name.
    """

    train: Sequence[TokenisedSet]
    held: Sequence[TokenisedSet]
    also: Mapping[str, TokenisedSet]


def read(config: ContinualConfig) -> Read:
    """Everything that the configuration names.

    Raises:
      UserError: as `load_records`; junk without a share or a share without junk.
    """
    tasks = config.stream
    if (config.mixture is None) == any(task.junk is not None for task in tasks):
        raise UserError("mixture and the junk of a task belong together; set both or neither")
    for task in tasks:
        column = task.order is not None and task.order.score.by == "column"
        if column and (task.junk is not None or config.packing == "blocks"):
            raise UserError(
                f"stream.{task.name}.order.score: rows of a column are lost where junk is mixed "
                'in or text is packed into blocks; score by "likelihood" or "lqs"'
            )
    return Read(
        [load_records(task.data) for task in tasks],
        [load_records(task.evaluate) for task in tasks],
        [None if task.junk is None else load_records(task.junk) for task in tasks],
        {name: load_records(source) for name, source in config.measure.also.items()},
    )


def texts_of(found: Read, lm: LanguageModel, config: ContinualConfig, run: RunDirectory) -> Texts:
    """The stream's text as tokens of a model, mixed and packed as configured.

    Raises:
      UserError: as `tokenise` and `mixed`.
    """

    def tokens(records: Sequence[Record]) -> TokenisedSet:
        return tokens_of(records, lm, config, run)

    train = []
    for place, records in enumerate(found.train):
        own, junk = tokens(records), found.junk[place]
        seed = (config.train.seed, place)
        if junk is not None:
            own = _mixed(own, tokens(junk), config, seed)
        if config.packing == "blocks":
            own = blocks(own, longest(config, lm), seed)
        train.append(own)
    limit = config.measure.limit
    held = [limited(tokens(records), limit) for records in found.held]
    also = {name: limited(tokens(records), limit) for name, records in found.also.items()}
    return Texts(train, held, also)


def _mixed(
    control: TokenisedSet, junk: TokenisedSet, config: ContinualConfig, seed: tuple[int, ...]
) -> TokenisedSet:
    assert config.mixture is not None
    how = config.mixture
    ids = mixed(control.lengths, junk.lengths, how.share, how.tokens, seed)
    whole = joined([control, junk])
    return chosen(whole, np.concatenate([ids[0], len(control) + ids[1]]))
