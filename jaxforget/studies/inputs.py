"""What every training step consumes: packed batches and the scores of the starting model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxforget.data.batches import PairedBatches, prefetch
from jaxforget.engine import mesh as meshes
from jaxforget.engine.train import Inputs
from jaxforget.engine.types import Batches, Head, Reference, ReferenceScores
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel

LOGP, HIDDEN, RESIDUAL = "reference_logp", "reference_hidden", "reference_residual"


def reference_heads(lm: LanguageModel, method: Method, mesh: Mesh, seed: int) -> dict[str, Head]:
    """Output projections of the models compared with, by role where distributions are compared."""
    rules = (("weight$", P("tensor", "fsdp")), ("bias$", P("tensor")))

    def placed(model: LanguageModel) -> Head:
        head = jax.tree.map(np.array, model.head(model.params))
        return meshes.put(head, meshes.shardings(head, mesh, rules))

    roles = {role for role, fields in method.reference.items() if "hidden" in fields}
    random = roles & method.needs.random
    heads = dict.fromkeys(roles - random, placed(lm)) if roles - random else {}
    return heads | (dict.fromkeys(random, placed(lm.reinitialised(seed))) if random else {})


def step_inputs(
    batches: PairedBatches, heads: Mapping[str, Head], mesh: Mesh, steps: tuple[int, int, int]
) -> Any:
    """Device-ready inputs of every step, prepared one thread ahead.

    `steps` are the run's: where the batches begin, where to start, where to stop.
    """
    first, start, stop = steps

    def prepare(step: int) -> Inputs:
        rows, columns = batches.at(step - first)
        on_device: Batches = {role: meshes.put_rows(batch, mesh) for role, batch in rows.items()}
        on_mesh = {role: meshes.put_rows(dict(named), mesh) for role, named in columns.items()}
        return Inputs(on_device, joined(on_mesh, heads), _tokens(rows))

    return prefetch(prepare, start, stop)


def stacked_inputs(batches: Sequence[PairedBatches], mesh: Mesh, start: int, stop: int) -> Any:
    """Inputs of every step of several runs side by side, of equal shapes, stacked in front.

    The heads compared with are not among them: they are the same at every step.
    """

    def prepare(step: int) -> Inputs:
        made = [each.at(step) for each in batches]
        pairs = [(rows, joined(columns, {})) for rows, columns in made]
        placed = NamedSharding(mesh, P(None, *meshes.by_rows(mesh).spec))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *pairs)
        rows, reference = meshes.put(stacked, placed)
        return Inputs(rows, reference, sum(_tokens(rows) for rows, _ in made))

    return prefetch(prepare, start, stop)


def _tokens(rows: Batches) -> int:
    return sum(int(np.count_nonzero(batch.segments)) for batch in rows.values())


def joined(columns: Mapping[str, Mapping[str, Any]], heads: Mapping[str, Head]) -> Reference:
    """Reference scores by role from the columns of their sets; roles without any are left out."""
    found = {
        role: ReferenceScores(named[LOGP], named.get(HIDDEN), residual=named.get(RESIDUAL))
        for role, named in columns.items()
        if LOGP in named
    }
    return with_heads(found, heads)


def with_heads(reference: Reference, heads: Mapping[str, Head]) -> Reference:
    """The scores with the projections that belong to them, hidden states as these multiply them."""

    def one(role: str, scores: ReferenceScores) -> ReferenceScores:
        head, hidden = heads.get(role), scores.hidden
        if hidden is not None and head is not None:
            hidden = hidden.astype(head.weight.dtype)
        return replace(scores, head=head, hidden=hidden)

    return {role: one(role, scores) for role, scores in reference.items()}
