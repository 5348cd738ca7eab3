"""Gradient projection memory: updates of a layer stay outside the span of its earlier inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.finishers import Finisher
from jaxforget.combiners.terms import number, whole
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, path_string
from jaxforget.engine.types import Metrics

_HIGHEST = jax.lax.Precision.HIGHEST


def gpm(bases: Mapping[str, Array]) -> Finisher:
    """Remove from the update of every matrix what acts on the inputs of earlier tasks.

    For a weight stored `[in, out]`, D <- D - M M'D: outputs for inputs in the span of M do not
    change at all. It acts on the realised update, so momentum and decay stay outside the span too.

    Args:
      bases: by path ("layers/mlp/up/w"), orthonormal columns M, float32 `[..., in, rank]` with the
        leading axes of the weight `[..., in, out]`; columns of zeros are ignored. See `gpm_basis`.
    Returns:
      A `Finisher`; its state is the bases by path, which a study replaces between tasks. Leaves
      without a basis pass bit for bit.
    Raises:
      UserError: at `init`, a path that is no trained leaf, or shapes that do not fit.
    Source: Saha et al. 2021 (arXiv 2103.09762), eq. 6-7 with weights transposed.
    """

    def init(params: Params) -> dict[str, Array]:
        leaves = flatten(params)
        for path, basis in bases.items():
            if path not in leaves:
                raise UserError(f"gpm: {path!r} is no trained leaf; there are {sorted(leaves)}")
            shape, ours = leaves[path].shape, jnp.shape(basis)
            if len(shape) < 2 or len(ours) != len(shape) or ours[:-1] != shape[:-1]:
                raise UserError(
                    f"gpm: the basis of {path} has shape {ours}; the weight is {shape}, so it must "
                    f"be {(*shape[:-1], 'rank')}"
                )
        return {path: jnp.array(basis, jnp.float32) for path, basis in bases.items()}

    def finish(delta: Params, state: Any, params: Params) -> tuple[Params, Any, Metrics]:
        def leaf(path: tuple[Any, ...], d: Array) -> Array:
            basis = state.get(path_string(path))
            if basis is None:
                return d
            return _without(basis, _without(basis, d.astype(jnp.float32))).astype(d.dtype)

        return jax.tree_util.tree_map_with_path(leaf, delta), state, {}

    return Finisher(init=init, finish=finish)


def gpm_basis(
    inputs: Array, *, rank: int, threshold: float = 0.97, basis: Array | None = None
) -> Array:
    """Orthonormal basis of what a layer's inputs span, extending an earlier one.

    Adds the leading left singular vectors of the inputs' part outside the earlier basis, as many as
    bring the energy covered to `threshold`, as far as there is room.

    Args:
      inputs: float `[in, samples]`, one column for each input vector.
      rank: columns of the result, 1..in.
      threshold: share of ||inputs||^2 to cover, in [0, 1]; 0 adds nothing.
      basis: earlier result, `[in, rank]`, or None.
    Returns:
      float32 `[in, rank]`: orthonormal columns, then zeros. Use `jax.vmap` for stacked layers.
    Raises:
      UserError: rank or threshold out of range.
    Source: Saha et al. 2021 (arXiv 2103.09762), eq. 8-9.
    """
    size = inputs.shape[0]
    whole("gpm_basis", "rank", rank, 1, size)
    number("gpm_basis", "threshold", threshold, 0.0, 1.0)
    if basis is None:
        basis = jnp.zeros((size, rank), jnp.float32)
    wide = inputs.astype(jnp.float32)
    rest = _without(basis, _without(basis, wide))
    left, values, _ = jnp.linalg.svd(rest, full_matrices=False)
    total = jnp.square(wide).sum()
    covered = total - jnp.square(rest).sum()
    before = covered + jnp.cumsum(jnp.square(values)) - jnp.square(values)
    noise = 1e-6 * jnp.sqrt(total)
    wanted = (before < threshold * total) & (values > noise)
    columns = jnp.concatenate([basis, left * wanted[None, :]], axis=1)
    filled = jnp.concatenate([jnp.abs(basis).max(axis=0) > 0, wanted])
    order = jnp.argsort(~filled, stable=True)  # filled columns first, the earlier ones before
    return columns[:, order][:, :rank]


def _without(basis: Array, x: Array) -> Array:
    """x `[..., in, m]` minus its part in the span of basis `[..., in, r]`."""
    shares = jnp.einsum("...ir,...im->...rm", basis, x, precision=_HIGHEST)
    return x - jnp.einsum("...ir,...rm->...im", basis, shares, precision=_HIGHEST)
