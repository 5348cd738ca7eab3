"""Norm of every example's own gradient: how hard it still pulls at the weights."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget.data.pack import pack
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params, flatten
from jaxforget.engine.types import ScoreFn, TokenBatch

_MULTIPLE = 64


def gradient_norms(
    score: ScoreFn,
    params: Params,
    tokenised: TokenisedSet,
    *,
    rows: int = 16,
    at_once: int = 1,
    peer_compat: bool = False,
    put: Callable[[Any], Any] | None = None,
    counted: Callable[[int, int], None] = lambda *_: None,
) -> np.ndarray:
    """2-norm of the gradient of each example's mean NLL with respect to all parameters.

    Args:
      score: the model.
      params: of floating leaves.
      tokenised: the set; examples of similar length share a compiled program.
      rows: examples handed to the device at a time.
      at_once: gradients held at a time, each of the size of the model in float32 (`jax.vmap`);
        1: one after the other, which is as fast where one example fills the device.
      peer_compat: the peer's number instead, the mean of the 2-norms of single tensors; the
        layers' tensors count apart, as a checkpoint stores them.
      put: places a batch on the devices; None: on all of those of the parameters.
      counted: told (examples done, examples in all).
    Returns:
      float64 `[n]`, nats per unit of weight, in order of the set.
    Raises:
      UserError: `rows` or `at_once` below 1.
    """
    if rows < 1 or at_once < 1:
        raise UserError(f"gradient norms: rows and at_once must be >= 1, are {rows}, {at_once}")
    rows = min(rows, len(tokenised))
    run = _compiled(score, min(at_once, rows), peer_compat)
    mesh = meshes.mesh_of(params)
    place = None if mesh is None else meshes.replicated(mesh)
    if put is None:
        put = functools.partial(meshes.put, placed=place) if place else jax.device_put
    norms, done = np.zeros(len(tokenised)), 0
    for batch in one_a_row(tokenised, rows):
        with meshes.in_use(mesh):
            found = np.asarray(meshes.whole(run(params, put(batch)), mesh), np.float64)
        examples = np.asarray(batch.example)[:, 0]
        norms[examples[examples >= 0]] = found[examples >= 0]
        done += int((examples >= 0).sum())
        counted(done, len(tokenised))
    return norms


def one_a_row(tokenised: TokenisedSet, rows: int) -> list[TokenBatch]:
    """One example a row, rows no longer than the examples of similar length need; `[rows, length]`,
    the last of a length filled up with empty rows."""
    lengths = -(-tokenised.lengths // _MULTIPLE) * _MULTIPLE
    batches = []
    for length in np.unique(lengths):
        members = np.nonzero(lengths == length)[0]
        most = min(-(-int(tokenised.label_counts[members].max()) // 8) * 8, int(length))
        for start in range(0, len(members), rows):
            part = members[start : start + rows]
            batch, _ = pack(
                tokenised, part, rows=rows, length=int(length), max_segments=1, max_targets=most
            )
            batches.append(batch)
    return batches


@functools.lru_cache(maxsize=8)
def _compiled(score: ScoreFn, at_once: int, peer_compat: bool) -> Callable[..., Array]:
    def loss(params: Params, batch: TokenBatch) -> Array:
        scores = score(params, batch)
        return -(scores.logp * scores.mask).sum() / jnp.maximum(scores.mask.sum(), 1.0)

    def run(params: Params, batch: TokenBatch) -> Array:
        def one(row: TokenBatch) -> Array:
            single = jax.tree.map(lambda leaf: leaf[None], row)
            gradient = jax.grad(loss)(params, single)
            return _mean_of_norms(gradient) if peer_compat else _norm(gradient)

        return jax.lax.map(one, batch, batch_size=at_once if at_once > 1 else None)

    return jax.jit(run, compiler_options=compiler_options())


def _norm(gradient: Params) -> Array:
    leaves = jax.tree.leaves(gradient)
    return jnp.sqrt(sum(jnp.square(leaf.astype(jnp.float32)).sum() for leaf in leaves))


def _mean_of_norms(gradient: Mapping[str, Any]) -> Array:
    norms = []
    for path, leaf in flatten(gradient).items():
        squares = jnp.square(leaf.astype(jnp.float32))
        axes = tuple(range(1, leaf.ndim)) if path.startswith("layers/") else None
        norms.append(jnp.sqrt(squares.sum(axes)).ravel())
    return jnp.concatenate(norms).mean()
