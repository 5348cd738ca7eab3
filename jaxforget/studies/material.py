"""Whole passes over a method's data sets, for edits and for what is measured before training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from jaxforget.config import TrainConfig
from jaxforget.data.batches import PairedBatches
from jaxforget.data.pack import pack_all
from jaxforget.data.sets import TokenisedSet, example_ids
from jaxforget.edits.material import Material
from jaxforget.engine import mesh as meshes
from jaxforget.engine.tree import Params
from jaxforget.engine.types import TokenBatch
from jaxforget.models.language_model import LanguageModel

_MULTIPLE = 16  # of the length of rows with one example each


@dataclass(frozen=True)
class WholePasses:
    """See `jaxforget.edits.material.Passes`.

    Attributes:
      sets: by role.
      settings: whose `batch_size`, `seed` and `row_length` count.
      mesh: that batches are placed on.
    """

    sets: Mapping[str, TokenisedSet]
    settings: TrainConfig
    mesh: Mesh

    def __call__(self, role: str, *, singly: bool = False, epochs: int = 1) -> Iterator[TokenBatch]:
        """Batches in an order that the seed fixes; see `Passes`."""
        tokenised, shards = self.sets[role], meshes.row_shards(self.mesh)
        if singly:
            longest = int(tokenised.lengths.max())
            length = -(-longest // _MULTIPLE) * _MULTIPLE
            rows = -(-self.settings.batch_size // shards) * shards
            for batch in pack_all(tokenised, rows=rows, length=length, max_segments=1):
                yield meshes.put_rows(batch, self.mesh)
            return
        batches = PairedBatches(
            {role: tokenised},
            self.settings.batch_size,
            self.settings.seed,
            self.settings.row_length,
            shards,
        )
        steps = epochs * batches.steps_per_epoch
        planned = batches.plan(steps)
        for step in range(steps):
            yield meshes.put_rows(planned.at(step)[0][role], self.mesh)


def material(
    lm: LanguageModel,
    leaves: tuple[Params, Params],
    sets: Mapping[str, TokenisedSet],
    settings: TrainConfig,
    mesh: Mesh,
    tuned: Params | None = None,
) -> Material:
    """The starting model and its data as edits read them.

    Args:
      lm: the starting model.
      leaves: (those that may change, the others), on the devices.
      sets: by role.
      settings: of the batches and the random key.
      mesh: of the run.
      tuned: the leaves that may change, after a training.
    """
    changing, frozen = leaves
    return Material(
        score=lm.score,
        params=changing,
        frozen=frozen,
        tuned=changing if tuned is None else tuned,
        passes=WholePasses(sets, settings, mesh),
        key=jax.random.key(settings.seed),
        ids=lambda role: example_ids(sets[role]).tolist(),
        roles=tuple(sets),
    )
