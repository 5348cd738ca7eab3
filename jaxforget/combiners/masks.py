"""Masks and weights of single entries or whole leaves of the optimizer's realised update.

They act on the update, not the gradient, so an entry that is masked stays bit-equal whatever
momentum and weight decay would do to it. Its gradient still counts in a clipping norm.
"""

from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.finishers import STILL, Finisher
from jaxforget.combiners.terms import number
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, matches, path_string
from jaxforget.engine.types import Metrics


def path_mask(pattern: str) -> Finisher:
    """Only leaves whose path matches move; the others stay bit-equal.

    Args:
      pattern: regular expression searched in paths such as "layers/mlp/down/w".
    Returns:
      A `Finisher` without state.
    Raises:
      UserError: at `init`, no trained leaf matches.
    """
    chosen = matches(pattern)

    def init(params: Params) -> tuple[()]:
        _require_match("path_mask", pattern, params)
        return ()

    def finish(delta: Params, state: Any, params: Params) -> tuple[Params, Any, Metrics]:
        def leaf(path: tuple[Any, ...], d: Array) -> Array:
            return d if chosen(path_string(path)) else jnp.full_like(d, STILL)

        return jax.tree_util.tree_map_with_path(leaf, delta), state, {}

    return Finisher(init=init, finish=finish)


def layer_mask(
    layers: Iterable[int], *, pattern: str = "(^|/)layers/", others: bool = False
) -> Finisher:
    """Of leaves stacked over layers, only some layers move.

    Args:
      layers: indices on axis 0, from 0; e.g. range(5, 8).
      pattern: regular expression on paths: which leaves are stacked and may move.
      others: may leaves that do not match move?
    Returns:
      A `Finisher` without state.
    Raises:
      UserError: no layers, a negative one; at `init`, no leaf matches or an index is too large.
    """
    wanted = sorted(set(layers))
    if not wanted or any(not isinstance(i, int) or i < 0 for i in wanted):
        raise UserError(f"layer_mask: layers must be indices >= 0, at least one, got {wanted}")
    chosen = matches(pattern)

    def init(params: Params) -> tuple[()]:
        _require_match("layer_mask", pattern, params)
        for path, leaf in flatten(params).items():
            if chosen(path) and (leaf.ndim == 0 or wanted[-1] >= leaf.shape[0]):
                raise UserError(
                    f"layer_mask: layer {wanted[-1]} of {path}, which has shape {leaf.shape}"
                )
        return ()

    def finish(delta: Params, state: Any, params: Params) -> tuple[Params, Any, Metrics]:
        def leaf(path: tuple[Any, ...], d: Array) -> Array:
            if not chosen(path_string(path)):
                return d if others else jnp.full_like(d, STILL)
            rows = jnp.isin(jnp.arange(d.shape[0]), jnp.array(wanted))
            return jnp.where(rows.reshape(-1, *(1,) * (d.ndim - 1)), d, STILL)

        return jax.tree_util.tree_map_with_path(leaf, delta), state, {}

    return Finisher(init=init, finish=finish)


def saliency_mask(mask: Params) -> Finisher:
    """Only salient entries move; the others stay bit-equal under momentum and weight decay.

    The published mask is the half of all entries with the largest gradient of the forget loss:
    `largest(gradient, 0.5)`.

    Args:
      mask: tree of bool (or 0 / 1) arrays with the structure and shapes of the trained leaves.
    Returns:
      A `Finisher`; its state is the mask, one byte an entry.
    Raises:
      UserError: at `init`, structure or shapes differ from the parameters'.
    Source: Fan et al. 2023, SalUn (arXiv 2310.12508), eq. 3-4.
    """

    def init(params: Params) -> Params:
        _require_same("saliency_mask", mask, params)
        return jax.tree.map(lambda m: jnp.array(m, dtype=bool), mask)

    def finish(delta: Params, state: Any, params: Params) -> tuple[Params, Any, Metrics]:
        return jax.tree.map(lambda d, m: jnp.where(m, d, STILL), delta, state), state, {}

    return Finisher(init=init, finish=finish)


def fisher_weighted(
    importance: Params,
    *,
    mode: Literal["divide", "multiply"] = "divide",
    damping: float = 1.0,
) -> Finisher:
    """Scale every entry of the update by how important it is to some data.

    With f the importance over its mean: "divide" multiplies by damping / (damping + f), so that
    entries important to the retained data move less; "multiply" by f / (damping + f), so that
    those important to the forgotten data move most. The two factors add up to 1.

    Args:
      importance: tree of entries >= 0 (a diagonal Fisher information, say) with the structure and
        shapes of the trained leaves.
      mode: see above.
      damping: > 0; large values bring "divide" to the identity.
    Returns:
      A `Finisher`; its state is the factors, float32.
    Raises:
      UserError: mode or damping; at `init`, structure or shapes differ from the parameters'.
    """
    if mode not in ("divide", "multiply"):
        raise UserError(f"fisher_weighted: mode must be 'divide' or 'multiply', got {mode!r}")
    if number("fisher_weighted", "damping", damping) == 0:
        raise UserError("fisher_weighted: damping must be above 0")

    def init(params: Params) -> Params:
        _require_same("fisher_weighted", importance, params)
        values = jax.tree.map(lambda f: jnp.asarray(f, jnp.float32), importance)
        leaves = jax.tree.leaves(values)
        mean = sum((leaf.sum() for leaf in leaves), jnp.zeros(())) / sum(x.size for x in leaves)
        mean = jnp.where(mean > 0, mean, 1.0)

        def factor(f: Array) -> Array:
            relative = f / mean
            return (damping if mode == "divide" else relative) / (damping + relative)

        return jax.tree.map(factor, values)

    def finish(delta: Params, state: Any, params: Params) -> tuple[Params, Any, Metrics]:
        scaled = jax.tree.map(
            lambda d, f: (d.astype(jnp.float32) * f).astype(d.dtype), delta, state
        )
        return scaled, state, {}

    return Finisher(init=init, finish=finish)


def _require_match(who: str, pattern: str, params: Params) -> None:
    if not any(map(matches(pattern), flatten(params))):
        raise UserError(
            f"{who}: {pattern!r} matches no trained leaf, e.g. {next(iter(flatten(params)))}"
        )


def _require_same(who: str, given: Params, params: Params) -> None:
    ours = {path: tuple(jnp.shape(leaf)) for path, leaf in flatten(given).items()}
    theirs = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    wrong = sorted(path for path in {*ours, *theirs} if ours.get(path) != theirs.get(path))
    if wrong:
        path = wrong[0]
        raise UserError(
            f"{who}: {path} has shape {ours.get(path, 'none')}, the trained leaf "
            f"{theirs.get(path, 'none')}; {len(wrong)} paths differ"
        )
