"""Batches of training runs as they are configured, planned for the mesh and the steps."""

import dataclasses
from collections.abc import Mapping, Sequence

from jax.sharding import AbstractMesh, Mesh

from jaxforget.config import TrainConfig
from jaxforget.data.batches import PairedBatches, in_common, tile_for, widened
from jaxforget.data.layout import Shape
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.methods import Method


def paired(
    sets: Mapping[str, TokenisedSet],
    settings: TrainConfig,
    row_multiple: int = 1,
    aligned: frozenset[str] = frozenset(),
) -> PairedBatches:
    """Batches as configured, not yet planned."""
    return PairedBatches(
        sets,
        settings.batch_size,
        settings.seed,
        settings.row_length,
        row_multiple,
        settings.pairing,
        settings.ratio,
        aligned=aligned,
    )


def plan_batches(
    sets: Mapping[str, TokenisedSet],
    settings: TrainConfig,
    mesh: Mesh | AbstractMesh,
    aligned: frozenset[str] = frozenset(),
    shared: Mapping[str, Shape] | None = None,
) -> tuple[PairedBatches, int]:
    """Batches of fixed shape for the whole run, and the number of steps.

    Args:
      sets: by role.
      settings: see the configuration.
      mesh: of the run.
      aligned: see `PairedBatches`.
      shared: shapes that other batches have, too, see `widened`; None: the least that fit.
    """
    multiple = meshes.row_shards(mesh) * settings.accumulate
    batches = paired(sets, settings, multiple, aligned)
    steps = _steps(batches, settings)
    wide = None
    if shared:
        wide = widened(lambda tile: batches.plan(steps, tile).shapes or {}, shared)
    if wide is not None:
        return dataclasses.replace(batches, shapes=wide), steps
    return batches.plan(steps), steps


def shared_shapes(
    requests: Sequence[Mapping[str, TokenisedSet]],
    method: Method,
    settings: TrainConfig,
    mesh: Mesh | AbstractMesh,
) -> dict[str, Shape]:
    """Shapes that suit the batches of every one of several requests: one program trains them all.

    Args:
      requests: sets by role of each.
      method, settings, mesh: of the run.
    """
    shapes: dict[str, Shape] = {}
    chosen = [{role: sets[role] for role in method.needs.roles} for sets in requests]
    tile = max(tile_for(sets) for sets in chosen)
    multiple = meshes.row_shards(mesh) * settings.accumulate
    for sets in chosen:
        batches = paired(sets, settings, multiple, method.needs.aligned)
        planned = batches.plan(_steps(batches, settings), tile)
        shapes = in_common([shapes, planned.shapes or {}])
    return shapes


def steps_of(sets: Mapping[str, TokenisedSet], method: Method, settings: TrainConfig) -> int:
    """Steps that training on these sets takes."""
    chosen = {role: sets[role] for role in method.needs.roles}
    return _steps(paired(chosen, settings), settings)


def _steps(batches: PairedBatches, settings: TrainConfig) -> int:
    return settings.steps or max(1, round(settings.epochs * batches.steps_per_epoch))
