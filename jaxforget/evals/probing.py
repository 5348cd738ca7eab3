"""Many short probes at many moments: one compiled pass, packed once and left on the devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget.data.pack import pack_all
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Scores


def probe_scorer(
    score: Callable[..., Scores], tokenised: TokenisedSet, *, rows: int, mesh: Any
) -> Callable[[Params], np.ndarray]:
    """A function that scores the same set again and again.

    Args:
      score: called as score(params, batch).
      tokenised: the probes; what counts of each are its labelled targets.
      rows: packed rows scored at a time.
      mesh: devices of the parameters.
    Returns:
      parameters -> mean log-probability of each example's targets, float64 `[n]`, nats a token.
    """
    count = len(tokenised)
    length = max(64, -(-int(tokenised.lengths.max()) // 64) * 64)
    rows = meshes.whole_rows(rows, mesh)
    batches = pack_all(tokenised, rows=rows, length=length)
    placed: list[Any] = []
    targets = np.asarray(tokenised.label_counts, np.float64)

    def sums(params: Params, batch: Any) -> Any:
        scores = score(params, batch)
        owner = jnp.take_along_axis(scores.example, jnp.maximum(scores.segments - 1, 0), axis=1)
        found = jnp.zeros(count, jnp.float32)
        return found.at[jnp.maximum(owner, 0).ravel()].add((scores.logp * scores.mask).ravel())

    compiled = jax.jit(sums, compiler_options=compiler_options())

    def scorer(params: Params) -> np.ndarray:
        if not placed:
            placed.extend(meshes.put_rows(batch, mesh) for batch in batches)
        with meshes.in_use(mesh):
            parts = [compiled(params, batch) for batch in placed]
        found = [np.asarray(meshes.whole(part, mesh), np.float64) for part in parts]
        return np.sum(found, axis=0) / targets

    return scorer
