"""Closed-form edits of one matrix that leave what other inputs give unchanged.

Layout: a weight is [d_in, d_out] and maps rows, y = k W; keys and residuals are rows.
Everything is computed in float32 at full precision (in float64 where the arrays are).
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget.combiners.terms import number, whole
from jaxforget.engine.errors import UserError

PRECISE = "highest"  # the guarantees are about small numbers: no TF32, no bfloat16 products


def second_moment(blocks: Iterable[Array]) -> Array:
    """E[k k^T] of keys that come in blocks.

    Args:
      blocks: `[m, d_in]` each, any m >= 0.
    Returns:
      `[d_in, d_in]`, float32 or wider, symmetric.
    Raises:
      UserError: no key, or blocks of several widths.
    """
    total, count = None, 0
    for block in blocks:
        block = _wide(block)
        if block.ndim != 2 or (total is not None and block.shape[1] != total.shape[0]):
            raise UserError(f"second_moment: keys must be [m, d_in], one d_in; got {block.shape}")
        more = jnp.matmul(block.T, block, precision=PRECISE)
        total, count = more if total is None else total + more, count + block.shape[0]
    if total is None or not count:
        raise UserError("second_moment: there is no key")
    return total / count


def null_space_projector(second_moment: Array, *, threshold: float = 2e-2) -> Array:
    """P = U0 U0^T, onto the directions that the keys of other texts hardly use.

    Args:
      second_moment: E[k k^T], `[d_in, d_in]`, symmetric and positive semi-definite; see
        `second_moment`. The published one is over 100,000 encyclopedia texts.
      threshold: > 0; U0 are the eigenvectors with eigenvalues below it. It is absolute: it depends
        on the scale of the keys.
    Returns:
      `[d_in, d_in]`, float32 or wider, symmetric, P P = P. The identity where all are below.
    Raises:
      UserError: no symmetric finite matrix, or no eigenvalue below the threshold.
    Source: Fang et al. 2024, AlphaEdit (arXiv 2410.02355).
    """
    if number("null_space_projector", "threshold", threshold) == 0:
        raise UserError("null_space_projector: threshold must be above 0")
    moment = _symmetric("null_space_projector", "second_moment", second_moment)
    values, vectors = jnp.linalg.eigh(moment)
    if not values[0] < threshold:
        raise UserError(
            f"null_space_projector: no eigenvalue below {threshold:g}, the smallest is "
            f"{float(values[0]):g}; raise the threshold"
        )
    if values[-1] < threshold:
        return jnp.eye(moment.shape[0], dtype=moment.dtype)
    chosen = vectors[:, : int((values < threshold).sum())]
    return jnp.matmul(chosen, chosen.T, precision=PRECISE)


def closed_form_edit(
    weight: Array,
    keys: Array,
    residuals: Array,
    projector: Array | None = None,
    seen_second_moment: Array | None = None,
    *,
    lam: float = 10.0,
) -> Array:
    """W + D with D = [P (K^T K + C) + lam I]^-1 P K^T R: keys K gain the residuals R.

    D minimises ||K D - R||^2 + trace(D^T C D) + lam ||D||^2 over the D = P D. Keys in the preserved
    span (P k = 0) keep their outputs. With P = I, lam = 0 and C the weighted second moment of
    other keys this is MEMIT. A later edit takes C = sum of the earlier keys' K^T K and residuals
    measured after the earlier edit; both together then equal the joint edit.

    Where keys are few (2 m <= d_in, lam > 0) the system is m x m (Woodbury's identity), after one
    factorisation of P C P + lam I unless C is None. Instead of C, earlier keys may come along as
    rows of K with residuals of zero, so that nothing of size d_in x d_in is factorised.

    Args:
      weight: `[d_in, d_out]`, floating.
      keys: K, `[m, d_in]`, inputs of the matrix; m = 0 changes nothing.
      residuals: R, `[m, d_out]`, wanted minus present outputs; see `spread` for several layers.
      projector: P, `[d_in, d_in]`, see `null_space_projector`; None: the identity.
      seen_second_moment: C, `[d_in, d_in]`, symmetric, positive semi-definite, a sum and not a
        mean; None: zero.
      lam: >= 0; the larger the smaller the edit.
    Returns:
      `[d_in, d_out]` in the dtype of `weight`; a narrow dtype rounds what the projector promises.
    Raises:
      UserError: shapes that do not fit, a matrix that is not symmetric, lam below 0, a system
        without a unique solution (lam = 0 and a projector or too few independent keys).
    Source: Fang et al. 2024, AlphaEdit (arXiv 2410.02355); Meng et al. 2022, MEMIT (arXiv
      2210.07229), eq. 14; with an unlearning token as target UniErase (arXiv 2505.15674).
    """
    number("closed_form_edit", "lam", lam)
    _check_shapes(weight, keys, residuals)
    rows, wanted = _wide(keys), _wide(residuals)
    if not rows.shape[0]:
        return weight
    project = _given("projector", projector, weight)
    seen = _given("seen_second_moment", seen_second_moment, weight)
    if project is not None:
        rows = jnp.matmul(rows, project, precision=PRECISE)
        seen = None if seen is None else _between(project, seen)
    few = lam > 0 and 2 * rows.shape[0] <= rows.shape[1]
    change = (_by_keys if few else _by_inputs)(rows, wanted, seen, lam)
    if project is not None:
        change = jnp.matmul(project, change, precision=PRECISE)  # rounding leaves the subspace
    if not jnp.isfinite(change).all():
        raise UserError(
            f"closed_form_edit: an input is not finite, or the system has no solution to this "
            f"precision at lam = {lam:g}; raise lam"
        )
    return (_wide(weight) + change).astype(weight.dtype)


def spread(residual: Array, layers_left: int) -> Array:
    """Share of a residual that this layer takes, where several are edited one after another.

    Args:
      residual: `[m, d_out]`, wanted minus present outputs of the last edited layer, measured anew
        before every layer.
      layers_left: how many layers are still to be edited, this one among them; >= 1.
    Returns:
      residual / layers_left: the last layer takes all that is left.
    Raises:
      UserError: layers_left below 1.
    Source: Meng et al. 2022, MEMIT (arXiv 2210.07229), algorithm 1.
    """
    return residual / whole("spread", "layers_left", layers_left, 1)


def _by_keys(keys: Array, wanted: Array, seen: Array | None, lam: float) -> Array:
    """A^-1 K^T (I + K A^-1 K^T)^-1 R with A = C + lam I: a system of the size of the keys."""
    if seen is None:
        inner = jnp.matmul(keys, keys.T, precision=PRECISE) + lam * _eye(keys.shape[0], keys)
        return jnp.matmul(keys.T, _solve(inner, wanted), precision=PRECISE)
    spread_keys = _solve(seen + lam * _eye(keys.shape[1], keys), keys.T)
    inner = _eye(keys.shape[0], keys) + jnp.matmul(keys, spread_keys, precision=PRECISE)
    return jnp.matmul(spread_keys, _solve(inner, wanted), precision=PRECISE)


def _by_inputs(keys: Array, wanted: Array, seen: Array | None, lam: float) -> Array:
    """(K^T K + C + lam I)^-1 K^T R: a system of the size of the inputs."""
    moment = jnp.matmul(keys.T, keys, precision=PRECISE) + lam * _eye(keys.shape[1], keys)
    if seen is not None:
        moment = moment + seen
    if lam == 0:
        values = jnp.linalg.eigvalsh(moment)
        if not values[0] > 10 * len(moment) * jnp.finfo(moment.dtype).eps * values[-1]:
            raise UserError(
                "closed_form_edit: at lam = 0 the edit is not determined (a projector, or too few "
                "independent keys); lam must be above 0"
            )
    return _solve(moment, jnp.matmul(keys.T, wanted, precision=PRECISE))


def _solve(matrix: Array, right: Array) -> Array:
    """Of a symmetric positive definite matrix; NaN where it is not."""
    with jax.default_matmul_precision(PRECISE):
        # projected products lose their symmetry to rounding
        return jax.scipy.linalg.solve((matrix + matrix.T) / 2, right, assume_a="pos")


def _between(project: Array, matrix: Array) -> Array:
    left = jnp.matmul(project, matrix, precision=PRECISE)
    return jnp.matmul(left, project, precision=PRECISE)


def _check_shapes(weight: Array, keys: Array, residuals: Array) -> None:
    shapes = tuple(map(jnp.shape, (weight, keys, residuals)))
    if [len(shape) for shape in shapes] != [2, 2, 2] or shapes[1:] != (
        (shapes[1][0], shapes[0][0]),
        (shapes[1][0], shapes[0][1]),
    ):
        raise UserError(
            f"closed_form_edit: weight [d_in, d_out], keys [m, d_in] and residuals [m, d_out] do "
            f"not fit: {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )


def _given(name: str, matrix: Array | None, weight: Array) -> Array | None:
    if matrix is None:
        return None
    found = _symmetric("closed_form_edit", name, matrix)
    if found.shape[0] != weight.shape[0]:
        raise UserError(
            f"closed_form_edit: {name} must be {(weight.shape[0],) * 2}, got {found.shape}"
        )
    return found


def _symmetric(who: str, name: str, matrix: Array) -> Array:
    wide = _wide(matrix)
    if wide.ndim != 2 or wide.shape[0] != wide.shape[1]:
        raise UserError(f"{who}: {name} must be a square matrix, got shape {wide.shape}")
    largest, gap = jnp.abs(wide).max(), jnp.abs(wide - wide.T).max()
    if not np.isfinite(largest) or gap > 1e-3 * largest:
        raise UserError(f"{who}: {name} must be symmetric and finite")
    return (wide + wide.T) / 2


def _eye(size: int, like: Array) -> Array:
    return jnp.eye(size, dtype=like.dtype)


def _wide(array: Array) -> Array:
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
