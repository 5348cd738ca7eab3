"""What every training step consumes: packed batches and the scores of the starting model."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxforget.data.batches import PairedBatches, prefetch
from jaxforget.data.injection import InjectedBatches
from jaxforget.data.stream import StreamBatches
from jaxforget.engine import mesh as meshes
from jaxforget.engine.train import Inputs
from jaxforget.engine.types import Batches, Head, Reference, ReferenceScores
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel

LOGP, HIDDEN, RESIDUAL = "reference_logp", "reference_hidden", "reference_residual"
VALUES = "reference_values"
WORDS, LOGITS = "reference_words", "reference_logits"

HEAD_RULES = (("weight$", P("tensor", "fsdp")), ("bias$", P("tensor")))
"""Where the output projection of a model that is compared with lies."""


def reference_heads(lm: LanguageModel, method: Method, mesh: Mesh, seed: int) -> dict[str, Head]:
    """Output projections of the models compared with, by role where distributions are compared."""

    def placed(model: LanguageModel) -> Head:
        head = jax.tree.map(np.array, model.head(model.params))
        return meshes.put(head, meshes.shardings(head, mesh, HEAD_RULES))

    roles = {role for role, fields in method.reference.items() if "hidden" in fields}
    random = roles & method.needs.random
    heads = dict.fromkeys(roles - random, placed(lm)) if roles - random else {}
    return heads | (dict.fromkeys(random, placed(lm.reinitialised(seed))) if random else {})


def step_inputs(
    batches: PairedBatches | StreamBatches | InjectedBatches,
    heads: Mapping[str, Head],
    mesh: Mesh,
    steps: tuple[int, int, int],
) -> Any:
    """Device-ready inputs of every step, prepared one thread ahead.

    `steps` are the run's: where the batches begin, where to start, where to stop.
    """
    first, start, stop = steps

    def prepare(step: int) -> Inputs:
        rows, columns = batches.at(step - first)
        tokens = sum(int(np.count_nonzero(batch.segments)) for batch in rows.values())
        on_device: Batches = {role: meshes.put_rows(batch, mesh) for role, batch in rows.items()}
        on_mesh = {role: meshes.put_rows(dict(named), mesh) for role, named in columns.items()}
        return Inputs(on_device, joined(on_mesh, heads), tokens)

    return prefetch(prepare, start, stop)


def joined(columns: Mapping[str, Mapping[str, Any]], heads: Mapping[str, Head]) -> Reference:
    """Reference scores by role from the columns of their sets; roles without any are left out."""
    return {
        role: _reference(named, heads.get(role)) for role, named in columns.items() if LOGP in named
    }


def _reference(columns: Mapping[str, Any], head: Head | None) -> ReferenceScores:
    hidden = columns.get(HIDDEN)
    if hidden is not None and head is not None:
        hidden = hidden.astype(head.weight.dtype)  # as the model multiplies them
    return ReferenceScores(
        logp=columns[LOGP],
        hidden=hidden,
        head=head,
        residual=columns.get(RESIDUAL),
        values=columns.get(VALUES),
        words=columns.get(WORDS),
        logits=columns.get(LOGITS),
    )
