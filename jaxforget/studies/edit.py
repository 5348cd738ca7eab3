"""Edits of a whole model on the run's mesh."""

import dataclasses
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from jaxforget.config import TrainConfig
from jaxforget.data.sets import TokenisedSet
from jaxforget.edits.material import Edit
from jaxforget.engine import mesh as meshes
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import Metrics
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.common import to_host
from jaxforget.studies.material import material
from jaxforget.studies.training import divide


def edit_model(
    lm: LanguageModel,
    tuned: Params,
    sets: Mapping[str, TokenisedSet],
    edit: Edit,
    settings: TrainConfig,
    mesh: Mesh,
) -> tuple[Params, Metrics]:
    """Apply an edit to the leaves that `settings.trainable` names.

    Args:
      lm: the starting model.
      tuned: all leaves after the training that came before, merged; `lm.params` where none did.
      sets: by role.
      edit: see `Edit`.
      settings: of batches, seed and leaves.
      mesh: of the run.
    Returns:
      (all leaves on the host, the edit's scalars).
    """

    def place(leaves: Params) -> Params:
        return meshes.put(leaves, meshes.shardings(leaves, mesh))

    changing, frozen = map(place, divide(lm, None, settings))
    after, _ = divide(dataclasses.replace(lm, params=tuned), None, settings)
    with jax.set_mesh(mesh):
        found = material(lm, (changing, frozen), sets, settings, mesh, place(after))
        edited, metrics = edit(found)
    return merge(to_host(frozen), to_host(edited)), metrics
