"""Losses of every task's held-out text: whole sets at the ends of tasks, a probe in between."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget.data.pack import pack_all
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.stream import chosen, joined
from jaxforget.engine import mesh as meshes
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params
from jaxforget.evals.teacher_forced import score_set
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.streams.stream import Measure


def limited(tokenised: TokenisedSet, limit: int | None) -> TokenisedSet:
    """The first examples of a set; None: all."""
    if limit is None or limit >= len(tokenised):
        return tokenised
    return chosen(tokenised, np.arange(limit))


def row_measure(
    lm: LanguageModel,
    held: Sequence[TokenisedSet],
    rows: int,
    mesh: Any,
    also: Mapping[str, TokenisedSet] = {},
) -> Measure:
    """Mean NLL of every task's held-out set and of further ones, in one pass over all of them."""
    sets = [*held, *also.values()]
    whole, bounds = joined(sets), np.cumsum([0, *map(len, sets)])

    def measure(params: Params) -> Any:
        table = score_set(
            lm.score, params, whole, rows=rows, put=lambda batch: meshes.put_rows(batch, mesh)
        )
        cuts = table.offsets[bounds]
        parts = [table.logp[a:b].astype(np.float64) for a, b in zip(cuts, cuts[1:], strict=False)]
        means = [float(-part.mean()) for part in parts]
        found = {
            "nll": means[: len(held)],
            "tokens": [len(part) for part in parts[: len(held)]],
        }
        return found | ({"also": dict(zip(also, means[len(held) :], strict=True))} if also else {})

    return measure


def probe_measure(
    lm: LanguageModel, held: Sequence[TokenisedSet], count: int, mesh: Any
) -> Measure:
    """Mean NLL of every task's probe, one compiled program over all of them."""
    probes = [limited(each, count) for each in held]
    whole = joined(probes)
    owner = np.repeat(np.arange(len(probes)), [len(each) for each in probes])
    length = max(64, -(-int(whole.lengths.max()) // 64) * 64)
    rows = meshes.whole_rows(-(-int(whole.lengths.sum()) // length), mesh)
    batches = pack_all(whole, rows=rows, length=length)
    placed: list[Any] = []

    def means(params: Params, batches: Any, owner: Any) -> Any:
        sums, tokens = jnp.zeros(len(probes)), jnp.zeros(len(probes))
        for batch in batches:
            scores = lm.score(params, batch)
            example = jnp.take_along_axis(
                batch.example, jnp.maximum(scores.segments - 1, 0), axis=1
            )
            task = owner[jnp.maximum(example, 0)]
            sums = sums.at[task.ravel()].add((scores.logp * scores.mask).ravel())
            tokens = tokens.at[task.ravel()].add(scores.mask.ravel())
        return -sums / jnp.maximum(tokens, 1)

    compiled = jax.jit(means, compiler_options=compiler_options())

    def measure(params: Params) -> Any:
        if not placed:
            placed.extend(meshes.put_rows(batch, mesh) for batch in batches)
        found = meshes.whole(compiled(params, placed, jnp.asarray(owner)), mesh)
        return np.asarray(found, np.float64).tolist()

    return measure
