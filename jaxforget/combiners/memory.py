"""Combiners that respect gradients of earlier tasks, or of data to be kept."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.faces import MAX_VECTORS, cone_multipliers
from jaxforget.combiners.projections import project
from jaxforget.combiners.terms import (
    check_terms_of,
    finite_weights,
    names_of,
    number,
    weighted,
    whole,
)
from jaxforget.combiners.vectors import cosine, dot, gram, norm, subtract, zeros
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Combiner, Metrics
from jaxforget_kernels import extend_orthonormal, project_out


def agem(weights: Mapping[str, float], *, memory: str = "replay") -> Combiner:
    """Averaged gradient episodic memory: never climb the loss of a random memory batch.

    g = sum_k w_k g_k; where <g, g_ref> < 0 its component along g_ref is removed, otherwise it
    passes bit for bit.

    Args:
      weights: finite weight of each term in g, by name.
      memory: the term whose gradient is g_ref; it may be absent from `weights`.
    Returns:
      A `Combiner` without state. Metrics: `cosine_to_T` of g with the reference T, `binding`, 1
      where it was projected.
    Raises:
      UserError: bad weights; at trace time, names that are not the objective's terms.
    Source: Chaudhry et al. 2018 (arXiv 1812.00420), eq. 11.
    """
    return _rectified("agem", weights, memory, 1.0)


def gru(
    weights: Mapping[str, float], *, protect: str = "retain", smoothing: float = 0.8
) -> Combiner:
    """Gradient rectified unlearning: A-GEM against a moving average of the retain gradient.

    Args:
      weights: finite weight of each term in the direction, by name.
      protect: the term whose averaged gradient must not be climbed; it may be absent from
        `weights`.
      smoothing: share of the newest gradient in the average, in (0, 1]; 1 keeps no average. The
        first step starts the average with its own gradient.
    Returns:
      A `Combiner`; its state is the average and a step count (nothing at smoothing 1). Metrics as
      `agem`.
    Raises:
      UserError: bad weights or smoothing; at trace time, names that are not the objective's terms.
    Source: Wang et al. 2025 (arXiv 2503.09117); 0.8 is the published configuration.
    """
    if number("gru", "smoothing", smoothing, 0.0, 1.0) == 0:
        raise UserError("gru: smoothing must be above 0")
    return _rectified("gru", weights, protect, smoothing)


class AverageState(NamedTuple):
    """What `gru` carries.

    Attributes:
      average: of the protected term's gradients, float32.
      steps: int32.
    """

    average: Params
    steps: Array


def gem(
    weights: Mapping[str, float],
    *,
    memories: Sequence[str],
    margin: float = 0.5,
    ridge: float = 1e-3,
) -> Combiner:
    """Gradient episodic memory: never climb the loss of any of several memory batches.

    g~ = g + G v, v = argmin over v >= margin of 1/2 v'(G'G + ridge) v + (G'g)'v, solved only where
    some <g, g_k> < 0; with margin and ridge 0 it is the nearest vector with all <g~, g_k> >= 0.

    Args:
      weights: finite weight of each term in g, by name.
      memories: names of the 1..9 terms whose gradients are the columns of G.
      margin: >= 0, smallest multiplier, biases the step towards the memories.
      ridge: >= 0.
    Returns:
      A `Combiner` without state. Metrics: `cosine_to_T` of g with each memory T, `binding`, the
      number of memories that acted.
    Raises:
      UserError: a bad argument; at trace time, names that are not the objective's terms.
    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), eq. 11; margin and ridge as published.
    """
    fixed = finite_weights("gem", weights, least=None)
    names = names_of("gem", "memories", memories)
    if not 0 < len(names) <= MAX_VECTORS:
        raise UserError(f"gem: needs 1 to {MAX_VECTORS} memories, got {len(names)}")
    number("gem", "margin", margin)
    number("gem", "ridge", ridge)

    def combine(
        gradients: dict[str, Params], state: Any, params: Params
    ) -> tuple[Params, Any, Metrics]:
        check_terms_of("gem", {*fixed, *names}, gradients)
        direction = weighted(fixed, gradients)
        columns = [gradients[name] for name in names]
        products = jnp.stack([dot(column, direction) for column in columns])
        k_matrix = gram(columns) + ridge * jnp.eye(len(names), dtype=jnp.float32)
        lowest = jnp.full(len(names), margin, jnp.float32)
        extra, _ = cone_multipliers(k_matrix, -products - (k_matrix * lowest[None, :]).sum(axis=1))
        acts = (products < 0).any()
        multipliers = jnp.where(acts, lowest + extra, 0.0)
        metrics: Metrics = {
            f"cosine_to_{name}": cosine(direction, gradients[name]) for name in names
        }
        metrics["binding"] = (multipliers > 0).sum().astype(jnp.float32)
        return subtract(direction, -multipliers, columns), state, metrics

    return Combiner(init=lambda params: (), combine=combine)


class BasisState(NamedTuple):
    """What `ogd` carries.

    Attributes:
      basis: orthonormal trees stacked on a leading axis of length `rank`, float32; zeros beyond
        `count`.
      count: int32.
    """

    basis: Params
    count: Array


def ogd(
    weights: Mapping[str, float],
    *,
    rank: int,
    grow: str | None = None,
    on: Literal["update", "gradient"] = "update",
) -> Combiner:
    """Orthogonal gradient descent: steps orthogonal to stored gradients of earlier tasks.

    x <- x - U U'x with U the stored basis. An empty basis is the identity bit for bit.

    Args:
      weights: finite weight of each term in the direction, by name.
      rank: most stored directions, >= 1; memory is rank x parameters in float32, so use it with
        LoRA or few leaves.
      grow: a term whose gradient joins the basis at every step until it is full; None: the basis
        grows only by `extend_basis` between steps, and one backward pass suffices.
      on: "update": after the optimizer, so that momentum and decay stay outside the span too;
        "gradient": before it, as published for plain SGD.
    Returns:
      A `Combiner`; state `BasisState`. Metrics: `removed_share`, ||U U'x|| / ||x||, and
      `basis_count`.
    Raises:
      UserError: a bad argument; at trace time, names that are not the objective's terms.
    Source: Farajtabar et al. 2019 (arXiv 1910.07104), algorithm 1.
    """
    fixed = finite_weights("ogd", weights, least=None)
    whole("ogd", "rank", rank, 1)
    if on not in ("update", "gradient"):
        raise UserError(f"ogd: on must be 'update' or 'gradient', got {on!r}")

    def init(params: Params) -> BasisState:
        basis = jax.tree.map(lambda p: jnp.zeros((rank, *p.shape), jnp.float32), params)
        return BasisState(basis, jnp.zeros((), jnp.int32))

    def remove(x: Params, state: BasisState) -> tuple[Params, BasisState, Metrics]:
        moved = _outside(x, state)
        removed = jax.tree.map(lambda a, b: a.astype(jnp.float32) - b, x, moved)
        share = jnp.where(norm(x) > 0, norm(removed) / jnp.maximum(norm(x), 1e-30), 0.0)
        return (
            moved,
            state,
            {"removed_share": share, "basis_count": state.count.astype(jnp.float32)},
        )

    def combine(
        gradients: dict[str, Params], state: BasisState, params: Params
    ) -> tuple[Params, BasisState, Metrics]:
        check_terms_of("ogd", fixed if grow is None else {*fixed, grow}, gradients)
        direction = weighted(fixed, gradients)
        if grow is not None:
            state = extend_basis(state, gradients[grow])
        return remove(direction, state) if on == "gradient" else (direction, state, {})

    def finish(
        delta: Params, state: BasisState, params: Params
    ) -> tuple[Params, BasisState, Metrics]:
        return remove(delta, state)

    late = on == "update"
    return Combiner(
        init=init,
        combine=combine,
        finish=finish if late else None,
        weights=fixed if late and grow is None else None,
    )


def extend_basis(state: BasisState, gradient: Params, *, least: float = 1e-3) -> BasisState:
    """Add a gradient's direction to the basis of `ogd`, unless it is full.

    Args:
      state: see `BasisState`.
      gradient: tree like the parameters.
      least: a gradient whose part outside the span is shorter than this share of it adds nothing.
    Returns:
      The state with one more direction, or the same.
    """
    leaves, structure = jax.tree.flatten(state.basis)
    grown, count = extend_orthonormal(
        leaves, state.count, structure.flatten_up_to(gradient), least=least
    )
    return BasisState(structure.unflatten(grown), count)


def _outside(x: Params, state: BasisState) -> Params:
    """x without its part in the span, twice: once leaves the rounding of the first."""
    basis, structure = jax.tree.flatten(state.basis)
    leaves = structure.flatten_up_to(x)
    wide = [leaf.astype(jnp.float32) for leaf in leaves]
    rest = project_out(basis, project_out(basis, wide))
    return structure.unflatten(
        [
            jnp.where(state.count == 0, leaf, new.astype(leaf.dtype))
            for leaf, new in zip(leaves, rest, strict=True)
        ]
    )


def _rectified(who: str, weights: Mapping[str, float], memory: str, smoothing: float) -> Combiner:
    """The weighted sum, without its component against a (smoothed) reference gradient."""
    fixed = finite_weights(who, weights, least=None)

    def init(params: Params) -> Any:
        if smoothing == 1:
            return ()
        return AverageState(zeros(params, jnp.float32), jnp.zeros((), jnp.int32))

    def combine(
        gradients: dict[str, Params], state: Any, params: Params
    ) -> tuple[Params, Any, Metrics]:
        check_terms_of(who, {*fixed, memory}, gradients)
        direction, reference = weighted(fixed, gradients), gradients[memory]
        if smoothing < 1:
            share = jnp.where(state.steps == 0, 1.0, smoothing)
            reference = jax.tree.map(
                lambda old, new: old + share * (new.astype(jnp.float32) - old),
                state.average,
                reference,
            )
            state = AverageState(reference, state.steps + 1)
        moved, found = project(direction, [reference], whiten=True, one_sided=True)
        metrics = {f"cosine_to_{memory}": cosine(direction, reference), "binding": found.binding}
        return moved, state, metrics

    return Combiner(init=init, combine=combine)
