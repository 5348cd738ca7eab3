"""Penalties on low-rank adapters that keep a task's changes away from earlier ones.

Each task trains fresh factors (`lora_a` `[n, in, r]`, `lora_b` `[n, r, out]`); those of the task
before are folded into the weights, where they act on but move no more.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.terms import number, whole
from jaxforget.combiners.vectors import safe_divide
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, merge, unflatten
from jaxforget.engine.types import Metrics
from jaxforget.strategies.guard import Guard, added

A, B = "lora_a", "lora_b"
_HIGHEST = jax.lax.Precision.HIGHEST


class FactorState(NamedTuple):
    """What `o_lora` carries.

    Attributes:
      earlier: by path of the adapted map, the factors A of earlier tasks, float32
        `[tasks, n, in, r]`; zeros where there is none yet.
      count: tasks in it, int32.
    """

    earlier: dict[str, Array]
    count: Array


def o_lora(weight: float = 0.5, *, norm_weight: float = 0.0, tasks: int = 8) -> Guard:
    """O-LoRA: a new task's adapters read directions that earlier tasks' adapters do not.

    weight sum_s sum_ij |A_s' A|_ij + norm_weight sum ||factor||_2, over earlier tasks s, adapted
    matrices, and for the norm over all factors A and B of every layer; entry by entry.

    Args:
      weight: lambda_1 >= 0.
      norm_weight: lambda_2 >= 0.
      tasks: earlier tasks there is room for, >= 1; a strategy refuses longer streams.
    Returns:
      A `Guard` that measures nothing. State: `FactorState`. Metric `o_lora_penalty`.
    Raises:
      UserError: a value out of range; at `init`, trained leaves that are no factors.
    Source: Wang et al. 2023 (arXiv 2310.14152), eq. 5-8, and its published code: absolute values,
      not squares.
    """
    number("o_lora", "weight", weight)
    number("o_lora", "norm_weight", norm_weight)
    whole("o_lora", "tasks", tasks, 1)

    def init(params: Params) -> FactorState:
        kept = {
            path: jnp.zeros((tasks, *a.shape), jnp.float32)
            for path, a, _ in _factors("o_lora", params)
        }
        return FactorState(kept, jnp.zeros((), jnp.int32))

    def gradient(g: Params, state: FactorState, params: Params) -> tuple[Params, Metrics]:
        value, pulls = jnp.zeros((), jnp.float32), {}
        for path, a, b in _factors("o_lora", params):
            earlier = state.earlier[path]
            wide = a.astype(jnp.float32)
            overlap = jnp.einsum("tnis,nir->tnsr", earlier, wide, precision=_HIGHEST)
            value += weight * jnp.abs(overlap).sum()
            away = jnp.einsum("tnis,tnsr->nir", earlier, jnp.sign(overlap), precision=_HIGHEST)
            pulls[f"{path}/{A}"] = weight * away
            if norm_weight:
                for name, factor in ((A, wide), (B, b.astype(jnp.float32))):
                    size = jnp.sqrt(jnp.square(factor).sum(axis=(-2, -1), keepdims=True))
                    value += norm_weight * size.sum()
                    unit = norm_weight * safe_divide(factor, size * jnp.ones_like(factor))
                    pulls[f"{path}/{name}"] = pulls.get(f"{path}/{name}", 0.0) + unit
        return _with(g, pulls), {"o_lora_penalty": value}

    def end_of_task(state: FactorState, params: Params, measured: None) -> FactorState:
        row = jnp.arange(tasks) == state.count

        def stored(kept: Array, a: Array) -> Array:
            here = row.reshape(-1, *(1,) * a.ndim)
            return jnp.where(here, a.astype(jnp.float32)[None], kept)

        earlier = {
            path: stored(state.earlier[path], a) for path, a, _ in _factors("o_lora", params)
        }
        return FactorState(earlier, state.count + 1)

    return Guard(init=init, gradient=gradient, end_of_task=end_of_task)


class BitsState(NamedTuple):
    """What `reg_lora` carries.

    Attributes:
      bits: by path of the adapted map, one bit an entry of its weight, set where an earlier task
        changed it most; uint8 `[n, in, ceil(out / 8)]`.
    """

    bits: dict[str, Array]


def reg_lora(weight: float = 2500.0, *, share: float = 0.02) -> Guard:
    """RegLoRA: entries that earlier tasks changed most are left alone by the new adapter.

    weight mean_l mean_{(i,j) in S_l} |A B|_ij, S_l the union over earlier tasks of the `share` of
    largest entries of |A_s B_s| (without the adapters' scale) of matrix l.

    Args:
      weight: lambda >= 0.
      share: of the entries of each matrix, in (0, 1]; floor(share x entries) of them.
    Returns:
      A `Guard` that measures nothing. State: `BitsState`. Metrics `reg_lora_penalty` and
      `reg_lora_held`, the share of entries in S.
    Raises:
      UserError: a value out of range; at `init`, trained leaves that are no factors.
    Source: Chen et al. 2025, SEFE (arXiv 2505.02486), section 4.3. The published code counts an
      entry once for each task that named it; here a union is a union.
    """
    number("reg_lora", "weight", weight)
    if number("reg_lora", "share", share, 0.0, 1.0) == 0:
        raise UserError("reg_lora: share must be above 0")

    def init(params: Params) -> BitsState:
        return BitsState(
            {
                path: jnp.zeros((*a.shape[:-1], -(-b.shape[-1] // 8)), jnp.uint8)
                for path, a, b in _factors("reg_lora", params)
            }
        )

    def gradient(g: Params, state: BitsState, params: Params) -> tuple[Params, Metrics]:
        value, pulls = jnp.zeros((), jnp.float32), {}
        found = list(_factors("reg_lora", params))
        matrices = sum(a.shape[0] for _, a, _ in found)
        held = jnp.zeros((), jnp.float32)
        for path, a, b in found:
            a, b = a.astype(jnp.float32), b.astype(jnp.float32)
            change = _product(a, b)
            mask = _unpacked(state.bits[path], b.shape[-1])
            sizes = mask.sum(axis=(-2, -1), keepdims=True)
            each = mask * safe_divide(jnp.ones_like(change), sizes * jnp.ones_like(change))
            value += (weight / matrices) * (each * jnp.abs(change)).sum()
            held += mask.mean(axis=(-2, -1)).sum() / matrices
            pull = (weight / matrices) * each * jnp.sign(change)
            pulls[f"{path}/{A}"] = jnp.einsum("nio,nro->nir", pull, b, precision=_HIGHEST)
            pulls[f"{path}/{B}"] = jnp.einsum("nir,nio->nro", a, pull, precision=_HIGHEST)
        return _with(g, pulls), {"reg_lora_penalty": value, "reg_lora_held": held}

    def end_of_task(state: BitsState, params: Params, measured: None) -> BitsState:
        bits = {}
        for path, a, b in _factors("reg_lora", params):
            change = _product(a.astype(jnp.float32), b.astype(jnp.float32))
            count = int(share * change.shape[-2] * change.shape[-1])
            new = jax.vmap(lambda m, k=count: _largest(jnp.abs(m), k))(change)
            bits[path] = state.bits[path] | jnp.packbits(new, axis=-1)
        return BitsState(bits)

    return Guard(init=init, gradient=gradient, end_of_task=end_of_task)


def _factors(who: str, params: Params) -> Iterator[tuple[str, Array, Array]]:
    """(path of the map, A, B) of every adapter."""
    flat = flatten(params)
    others = [path for path in flat if path.rsplit("/", 1)[-1] not in (A, B)]
    if others or not flat:
        raise UserError(
            f"{who}: works on the factors of adapters alone, but {others[:3]} would be trained; "
            "configure lora"
        )
    for path, leaf in flat.items():
        if path.endswith(f"/{A}"):
            parent = path.removesuffix(f"/{A}")
            yield parent, leaf, flat[f"{parent}/{B}"]


def _product(a: Array, b: Array) -> Array:
    return jnp.einsum("nir,nro->nio", a, b, precision=_HIGHEST)


def _unpacked(bits: Array, width: int) -> Array:
    return jnp.unpackbits(bits, axis=-1, count=width).astype(jnp.float32)


def _largest(sizes: Array, count: int) -> Array:
    """Mask of the `count` largest entries; among equals the first ones."""
    if not count:
        return jnp.zeros(sizes.shape, bool)
    _, where = jax.lax.top_k(sizes.ravel(), count)
    return jnp.zeros(sizes.size, bool).at[where].set(True).reshape(sizes.shape)


def _with(gradient: Params, more: dict[str, Array]) -> Params:
    """The gradient with something added to some leaves."""
    flat = flatten(gradient)
    return merge(gradient, unflatten(added({path: flat[path] for path in more}, more)))
