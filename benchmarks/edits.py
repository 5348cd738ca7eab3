"""Edits of whole models, in epochs: their time over one forward and backward pass of their data.

The epoch is the same packed batches with the gradient of the mean negative log-likelihood and
nothing else: no optimizer, no logging. Both are timed with their programs already compiled.
"""

import statistics
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peak import seconds_of
from benchmarks.step import _sets
from jaxforget import methods
from jaxforget.config import TrainConfig
from jaxforget.data.fictitious import language, model_config, train_tokenizer
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params
from jaxforget.engine.types import TokenBatch
from jaxforget.models import Compute
from jaxforget.models.language_model import LanguageModel, from_scratch
from jaxforget.studies.edit import edit_model
from jaxforget.studies.material import WholePasses

EDITS = {
    "ssd, squared batches": {"name": "ssd", "estimator": "squared_batch"},
    "ssd, single examples": {"name": "ssd", "estimator": "per_example"},
    "iau": {"name": "iau"},
    "fisher_forgetting": {"name": "fisher_forgetting"},
    "woodfisher": {"name": "woodfisher"},
}


def rows(rounds: int) -> list[dict[str, Any]]:
    """One row an edit: median ratio over `rounds` interleaved rounds."""
    tokenizer = train_tokenizer(language())
    lm = from_scratch(model_config(tokenizer), tokenizer, 0, Compute(remat="dots"))
    sets, settings = _sets(lm), TrainConfig(batch_size=32)
    found: dict[str, list[float]] = {name: [] for name in EDITS}
    for _ in range(rounds):
        for name, choice in EDITS.items():
            method = methods.from_config(choice)
            read = {role: sets[role] for role in method.roles}
            found[name].append(_edit(lm, read, method, settings) / _epoch(lm, read, settings))
    return [
        {
            "suite": "edits",
            "edit": name,
            "reads": ", ".join(methods.from_config(EDITS[name]).roles),
            "over_epoch": round(statistics.median(ratios), 2),
            "spread": round(max(ratios) - min(ratios), 2),
            "device": jax.devices()[0].device_kind,
        }
        for name, ratios in found.items()
    ]


def _edit(
    lm: LanguageModel, sets: dict[str, TokenisedSet], method: Any, settings: TrainConfig
) -> float:
    mesh = make_mesh(MeshConfig())
    return seconds_of(lambda: edit_model(lm, lm.params, sets, method.edit, settings, mesh)[0])


def _epoch(lm: LanguageModel, sets: dict[str, TokenisedSet], settings: TrainConfig) -> float:
    """Seconds of one gradient over every batch of the sets."""

    def nll(params: Params, batch: TokenBatch) -> jax.Array:
        scores = lm.score(params, batch)
        return -(scores.logp * scores.mask).sum() / jnp.maximum(scores.mask.sum(), 1)

    mesh = make_mesh(MeshConfig())
    gradient = jax.jit(jax.grad(nll), compiler_options=compiler_options())
    passes = WholePasses(sets, settings, mesh)

    def once() -> list[Any]:
        with jax.set_mesh(mesh):
            return [gradient(lm.params, batch) for role in sets for batch in passes(role)]

    return seconds_of(once)
