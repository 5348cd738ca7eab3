"""Optimizers that act on every entry by itself, applied to one part of the model after another.

A whole update, written out, needs the clipped gradient, the update and the new moments beside the
old: four more copies of what is trained. A part at a time needs those of a part, and what it reads
stays near the processor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxforget.engine.tree import Params, path_string

PART = 2**22
"""Entries of a part, about: 16 MiB of float32."""


class Entrywise(optax.GradientTransformation):
    """An optax transformation that clips by the global norm, then treats every entry alone.

    Attributes:
      core: what follows clipping. Each entry of its update and of its moments depends on that entry
        of the gradient, the moments and the parameters, on the leaf's path and on counts only, and
        is finite where these are.
      clip_norm: largest global norm of a gradient; None: `core` is all there is.
    """

    core: optax.GradientTransformation
    clip_norm: float | None


def entrywise(core: optax.GradientTransformation, clip_norm: float | None) -> Entrywise:
    """The transformation of both; see `Entrywise`."""
    whole = core
    if clip_norm is not None:
        whole = optax.chain(optax.clip_by_global_norm(clip_norm), core)
    made = Entrywise(whole.init, whole.update)
    made.core, made.clip_norm = core, clip_norm
    return made


def update_in_parts(
    optimizer: Entrywise,
    gradient: Params,
    gradient_norm: Array,
    opt_state: Any,
    params: Params,
    allowed: Array,
    *,
    part: int = PART,
) -> tuple[Params, Any, Array]:
    """What `optimizer.update` and adding its update give, without either of them as a whole.

    Leaves under "layers" are divided by layers; on one device other large leaves by rows.

    Args:
      optimizer: see `Entrywise`.
      gradient: tree like `params`.
      gradient_norm: its global norm, scalar.
      opt_state: of the optimizer.
      params: nested dictionary.
      allowed: scalar of bool; where it is false nothing changes.
      part: entries of a part, about.
    Returns:
      (parameters, state, global norm of the update).
    """
    clipped = optimizer.clip_norm is not None
    view = _viewed(opt_state[1] if clipped else opt_state, params)
    factor = _clip_factor(gradient_norm, optimizer.clip_norm)
    structure = jax.tree.structure(params)
    named = [(path_string(path), leaf) for path, leaf in jax.tree.leaves_with_path(params)]
    columns = [[leaf for _, leaf in named], *map(structure.flatten_up_to, view.moments)]
    gradients = structure.flatten_up_to(gradient)
    total, counts = jnp.zeros((), jnp.float32), view.counts
    for group, parts in _groups(named, part):
        paths = [named[i][0] for i in group]
        apply = _applied(optimizer.core, view, paths, factor, allowed)
        some, rows = (
            [gradients[i] for i in group],
            [[column[i] for i in group] for column in columns],
        )
        made, counts, squares = _walk(apply, some, rows, view.counts, parts)
        total = total + squares
        for column, leaves in zip(columns, made, strict=True):
            for i, leaf in zip(group, leaves, strict=True):
                column[i] = leaf
    counts = jax.tree.map(lambda a, b: jnp.where(allowed, a, b), counts, view.counts)
    state = view.state_of([structure.unflatten(column) for column in columns[1:]], counts)
    new_state = (opt_state[0], state) if clipped else state
    return structure.unflatten(columns[0]), new_state, jnp.sqrt(total)


@dataclass(frozen=True)
class _View:
    """An optimizer's state as moments, each a tree like the parameters, and everything else."""

    form: Any
    where: tuple[bool, ...]
    moments: list[Any]
    counts: list[Any]

    def state_of(self, moments: Sequence[Any], counts: Sequence[Any]) -> Any:
        """The state with others in their places."""
        first, second = iter(moments), iter(counts)
        return self.form.unflatten([next(first if is_one else second) for is_one in self.where])

    def parts_of(self, state: Any) -> tuple[list[Any], list[Any]]:
        """(moments, everything else) of a state of this form."""
        nodes = list(zip(self.form.flatten_up_to(state), self.where, strict=True))
        return [x for x, is_one in nodes if is_one], [x for x, is_one in nodes if not is_one]


def _viewed(state: Any, params: Params) -> _View:
    structure = jax.tree.structure(params)

    def like_params(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=is_entries) == structure

    nodes, form = jax.tree.flatten(state, is_leaf=like_params)
    where = tuple(map(like_params, nodes))
    empty = _View(form, where, [], [])
    moments, counts = empty.parts_of(state)
    return _View(form, where, moments, counts)


def _applied(
    core: optax.GradientTransformation,
    view: _View,
    paths: Sequence[str],
    factor: Callable[[Array], Array],
    allowed: Array,
) -> Callable[[list[Any], list[list[Any]]], tuple[Any, ...]]:
    """From gradients and rows (parameters, moments) of some leaves to new rows, counts, squares."""

    def apply(some: list[Any], rows: list[list[Any]]) -> tuple[Any, ...]:
        tree, *moments = (dict(zip(paths, row, strict=True)) for row in rows)
        scaled = {path: factor(g) for path, g in zip(paths, some, strict=True)}
        found, state = core.update(scaled, view.state_of(moments, view.counts), tree)
        update = cast(dict[str, Array], found)
        new, counts = view.parts_of(state)
        moved = {path: (p + update[path]).astype(p.dtype) for path, p in tree.items()}
        made = [[each[path] for path in paths] for each in (moved, *new)]
        made = jax.tree.map(lambda a, b: jnp.where(allowed, a, b), made, rows)
        squares = (jnp.square(u.astype(jnp.float32)).sum() for u in update.values())
        return made, counts, sum(squares, jnp.zeros(()))

    return apply


def is_entries(node: Any) -> bool:
    """Whether a node of a state stands for the moment of one leaf, stored in several arrays."""
    return getattr(node, "of_one_leaf", False)


def _clip_factor(norm: Array, most: float | None) -> Callable[[Array], Array]:
    """As `optax.clip_by_global_norm`."""
    if most is None:
        return lambda leaf: leaf
    return lambda leaf: jnp.where(norm < most, leaf, (leaf / norm.astype(leaf.dtype)) * most)


def _groups(leaves: Sequence[tuple[str, Array]], part: int) -> list[tuple[list[int], int]]:
    """Leaves that are walked through together, by index, and in how many parts."""
    stacked: dict[int, list[int]] = {}
    small: list[int] = []
    alone: list[tuple[list[int], int]] = []
    whole = jax.sharding.get_abstract_mesh().size <= 1  # else rows may lie on several devices
    for i, (path, leaf) in enumerate(leaves):
        if "layers/" in path and leaf.ndim > 1:
            stacked.setdefault(leaf.shape[0], []).append(i)
        elif whole and leaf.ndim > 1 and leaf.size > part:
            alone.append(([i], _divisor(leaf.shape[0], -(-leaf.size // part))))
        else:
            small.append(i)
    together = [
        (group, _divisor(count, -(-sum(leaves[i][1].size for i in group) // part)))
        for count, group in stacked.items()
    ]
    return [each for each in ((small, 1), *together, *alone) if each[0]]


def _divisor(count: int, least: int) -> int:
    """The least divisor of `count` that is no less than `least`, or `count`."""
    return next((d for d in range(max(least, 1), count) if count % d == 0), count)


def _walk(
    apply: Callable[..., Any], gradients: list[Any], rows: Any, counts: Any, parts: int
) -> Any:
    """`apply` to one stretch of the leading axis after another, in place."""
    if parts == 1:
        return apply(gradients, rows)

    def stretch(tree: Any, i: Array) -> Any:
        def cut(leaf: Array) -> Array:
            size = leaf.shape[0] // parts
            return jax.lax.dynamic_slice_in_dim(leaf, i * size, size)

        return jax.tree.map(cut, tree)

    def body(i: Array, carry: Any) -> Any:
        rows, _, total = carry
        # a barrier, or XLA reads what it has overwritten from copies of the whole
        some, old = jax.lax.optimization_barrier((stretch(gradients, i), stretch(rows, i)))
        made, after, squares = apply(some, old)

        def put(whole: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(whole, new, i * new.shape[0], 0)

        return jax.tree.map(put, rows, made), after, total + squares

    return jax.lax.fori_loop(0, parts, body, (rows, counts, jnp.zeros((), jnp.float32)))
