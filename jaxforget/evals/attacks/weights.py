"""How far, and where, the weights moved: a diagnosis, not an attack."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten


def weight_changes(before: Params, after: Params) -> Mapping[str, Mapping[str, float]]:
    """Distance between two models, in all and by module.

    Args:
      before, after: parameters of one architecture.
    Returns:
      By path (and "all"): `distance`, the Euclidean norm of the difference; `relative`, that over
      the norm before; `moved`, the share of entries that differ; `cosine` of before and after.
      Layers are stacked: a path such as "layers/mlp/down/w" covers all of them.
    Raises:
      UserError: another architecture.
    """
    first, second = flatten(before), flatten(after)
    if first.keys() != second.keys() or any(first[k].shape != second[k].shape for k in first):
        raise UserError("weights: the two models are of different architectures")

    @jax.jit
    def sums(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        square = jnp.square
        return square(a).sum(), square(b).sum(), square(b - a).sum(), (a != b).sum(), (a * b).sum()

    found = {path: [float(x) for x in sums(first[path], second[path])] for path in first}
    sizes = {path: first[path].size for path in first}
    whole = [float(sum(column)) for column in zip(*found.values(), strict=True)]
    rows = {"all": (whole, sum(sizes.values()))}
    rows |= {path: (found[path], sizes[path]) for path in found}
    return {path: _summary(*row) for path, row in rows.items()}


def _summary(sums: list[float], size: int) -> dict[str, float]:
    old, new, moved, differ, inner = sums
    return {
        "distance": moved**0.5,
        "relative": (moved / old) ** 0.5 if old else float(moved > 0),
        "moved": differ / size,
        "cosine": inner / (old * new) ** 0.5 if old and new else 1.0,
    }
