"""Steps outside what earlier tasks span: OGD and GPM as guards.

A-GEM and GEM need the gradients of several batches and are combiners: `jaxforget.combiners`.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget import combiners
from jaxforget.combiners import BasisState, extend_basis, gpm_basis
from jaxforget.combiners.terms import number, whole
from jaxforget.edits.material import Material
from jaxforget.edits.woodfisher import example_gradients
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, matches
from jaxforget.engine.types import Metrics, ScoreFn, TokenBatch
from jaxforget.strategies.guard import Guard, Tree
from jaxforget.strategies.quadratic import TRAIN

MATRICES = r"(^|/)layers/.*/w$"
"""Paths of the decoder's linear maps."""


def ogd(rank: int, *, per_task: int = 100, on: Literal["update", "gradient"] = "update") -> Guard:
    """Orthogonal gradient descent: no step along stored gradients of earlier tasks' examples.

    Args:
      rank: most stored directions, >= 1. Memory is rank x parameters in float32: for adapters or
        few leaves.
      per_task: examples of each task whose gradients are stored, the first ones, >= 1.
      on: see `jaxforget.combiners.ogd`.
    Returns:
      A `Guard`; `measured` is a tree like the parameters with a leading axis of examples, gradients
      of their mean log-probability. State: `BasisState`. Metrics `ogd_removed_share` and
      `ogd_basis`.
    Raises:
      UserError: a value out of range.
    Source: Farajtabar et al. 2019 (arXiv 1910.07104), algorithm 1; the paper stores gradients of
      single logits, of which a language model has too many.
    """
    whole("ogd", "per_task", per_task, 1)
    combiner = combiners.ogd({"sum": 1.0}, rank=rank, on=on)
    finish = combiner.finish

    def outside(x: Tree, state: BasisState, params: Tree) -> tuple[Tree, Metrics]:
        if finish is not None:
            moved, _, found = finish(x, state, params)
        else:
            moved, _, found = combiner.combine({"sum": x}, state, params)
        renamed = {"removed_share": "ogd_removed_share", "basis_count": "ogd_basis"}
        return moved, {renamed[name]: value for name, value in found.items()}

    def measure(material: Material) -> Tree:
        found = example_gradients(
            material.score,
            material.params,
            material.passes(TRAIN, singly=True),
            frozen=material.frozen,
        )
        return jax.tree.map(lambda *rows: jnp.stack(rows), *itertools.islice(found, per_task))

    def end_of_task(state: BasisState, params: Tree, measured: Tree) -> BasisState:
        def one(state: BasisState, gradient: Tree) -> tuple[BasisState, None]:
            return extend_basis(state, gradient), None

        return jax.lax.scan(one, state, measured)[0]

    late = on == "update"
    return Guard(
        init=combiner.init,
        gradient=None if late else outside,
        update=outside if late else None,
        measure=measure,
        end_of_task=end_of_task,
    )


class BasesState(NamedTuple):
    """What `gpm` carries.

    Attributes:
      bases: by path, orthonormal columns, float32 `[..., in, room]`; zeros beyond those in use.
    """

    bases: dict[str, Array]


def gpm(
    *,
    paths: str = MATRICES,
    room: float = 0.5,
    threshold: float = 0.97,
    examples: int | None = 128,
) -> Guard:
    """Gradient projection memory: matrices change only on inputs that earlier tasks do not use.

    For a weight `[in, out]`, D <- D - M M'D on the realised update, M an orthonormal basis of the
    inputs of earlier tasks.

    Args:
      paths: regular expression on paths of weights `[..., in, out]`; leading axes are layers. Other
        leaves are trained without constraint: name in `train.trainable` those that may move.
      room: columns kept for a basis, as a share of its inputs, in (0, 1].
      threshold: share of the inputs' energy that a basis covers, in [0, 1].
      examples: of each task that the inputs are taken from; None: all.
    Returns:
      A `Guard`. `measured` maps paths to inputs, float `[..., in, samples]`, one input a column:
      with the inputs themselves, outputs for them never change. `measure` gives what the gradients
      of the examples' log-likelihoods are made of instead, see `gradient_inputs`, since a score
      function does not show its layers' inputs: the old examples' losses then keep still to first
      order. State: `BasesState`. Metric `gpm_used`, the mean share of columns in use.
    Raises:
      UserError: a value out of range; at `init`, no weight matches, or one is no matrix.
    Source: Saha et al. 2021 (arXiv 2103.09762), eq. 6-9.
    """
    if number("gpm", "room", room, 0.0, 1.0) == 0:
        raise UserError("gpm: room must be above 0")
    number("gpm", "threshold", threshold, 0.0, 1.0)
    chosen = matches(paths)
    finish = combiners.gpm({}).finish

    def init(params: Params) -> BasesState:
        found = {path: leaf for path, leaf in flatten(params).items() if chosen(path)}
        if not found:
            raise UserError(
                f"gpm: paths {paths!r} match no trained leaf, e.g. {next(iter(flatten(params)))!r}"
            )
        for path, leaf in found.items():
            if leaf.ndim < 2:
                raise UserError(f"gpm: {path} is no matrix, its shape is {leaf.shape}")
        return BasesState({path: _empty(leaf, room) for path, leaf in found.items()})

    def update(delta: Params, state: BasesState, params: Params) -> tuple[Params, Metrics]:
        moved = finish(delta, state.bases, params)[0]
        used = [(jnp.abs(basis).max(axis=-2) > 0).mean() for basis in state.bases.values()]
        return moved, {"gpm_used": jnp.stack(used).mean()}

    def measure(material: Material) -> dict[str, Array]:
        return gradient_inputs(
            material.score,
            material.params,
            material.passes(TRAIN, singly=True),
            [path for path in flatten(material.params) if chosen(path)],
            frozen=material.frozen,
            limit=examples,
        )

    def end_of_task(state: BasesState, params: Params, measured: Mapping[str, Array]) -> BasesState:
        missing = sorted(set(state.bases) - set(measured))
        if missing:
            raise UserError(f"gpm: no inputs were given for {missing}")
        bases = {
            path: _extended(basis, measured[path], threshold) for path, basis in state.bases.items()
        }
        return BasesState(bases)

    return Guard(init=init, update=update, measure=measure, end_of_task=end_of_task)


def _empty(leaf: Array, room: float) -> Array:
    *lead, inner, _ = leaf.shape
    return jnp.zeros((*lead, inner, max(1, round(room * inner))), jnp.float32)


def _extended(basis: Array, inputs: Array, threshold: float) -> Array:
    def one(b: Array, x: Array) -> Array:
        return gpm_basis(x, rank=b.shape[-1], threshold=threshold, basis=b)

    for _ in range(basis.ndim - 2):
        one = jax.vmap(one)
    return one(basis, inputs)


def gradient_inputs(
    score: ScoreFn,
    params: Params,
    batches: Iterable[TokenBatch],
    paths: Iterable[str],
    *,
    frozen: Params | None = None,
    limit: int | None = None,
) -> dict[str, Array]:
    """What the examples' gradients of some matrices are made of, as inputs for `gpm`.

    The gradient of a weight `[in, out]` is a sum of (input x signal coming back); its columns lie
    in the span of the inputs. The result R has R R' = mean over examples of G G'.

    Args:
      score: the model.
      params: nested dictionary.
      batches: one example a row.
      paths: of leaves `[..., in, out]`.
      frozen: further leaves of the model.
      limit: examples to read, the first ones; None: all.
    Returns:
      By path, float32 `[..., in, in]`.
    Raises:
      UserError: rows of several examples, no example.
    """
    found = example_gradients(score, params, batches, frozen=frozen)
    sums: dict[str, Array] = {}
    count = 0
    for gradient in found if limit is None else itertools.islice(found, limit):
        leaves = flatten(gradient)
        sums = _grown(sums, {path: leaves[path] for path in paths})
        count += 1
    if not count:
        raise UserError("gradient_inputs: there is no example")
    return {path: _root(moment / count) for path, moment in sums.items()}


@jax.jit
def _grown(sums: dict[str, Array], gradients: dict[str, Array]) -> dict[str, Array]:
    highest = jax.lax.Precision.HIGHEST
    more = {
        path: jnp.einsum("...io,...jo->...ij", g, g, precision=highest)
        for path, g in gradients.items()
    }
    return {path: sums[path] + moment for path, moment in more.items()} if sums else more


@jax.jit
def _root(moment: Array) -> Array:
    """R with R R' = moment, symmetric and positive semidefinite up to rounding."""
    values, vectors = jnp.linalg.eigh(moment)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[..., None, :]
