"""Low-rank adapters: factors that sit beside the weight they adapt.

A linear map `{"w", "b"?}` becomes `{"w", "b"?, "lora_a", "lora_b", "lora_scale"}`;
`layers.linear` adds (x @ a) @ b * scale where the factors are present. Base and adapters together
are `tree.merge(frozen, trained)`.
"""

import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, unflatten

FACTORS = ("lora_a", "lora_b", "lora_scale")


def init_lora(
    key: Array, params: Mapping[str, Any], *, rank: int, alpha: float, targets: str
) -> tuple[Params, Params]:
    """New adapters that leave the model's function as it is.

    A is normal with standard deviation 1 / sqrt(in), drawn from the key and the weight's path;
    B is zero. Both are float32 whatever the weights are.

    Args:
      key: from `jax.random.key`.
      params: of the decoder; weights of layers are `[n, in, out]`.
      rank: width of the adapter, >= 1 and at most both sides of every adapted weight.
      alpha: the adapter's product is multiplied by alpha / rank, > 0.
      targets: regular expression matched anywhere in the path of a linear map, such as
        "layers/attn/q".
    Returns:
      The trained leaves (`lora_a` `[n, in, rank]`, `lora_b` `[n, rank, out]`) and the frozen
      ones (`lora_scale` `[n]`), each nested as `params` is.
    Raises:
      UserError: nothing matches, no regular expression, an impossible rank or alpha, or
        adapters that are there already.
    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """
    if rank < 1:
        raise UserError(f"lora.rank must be an integer >= 1, got {rank}")
    if not alpha > 0:
        raise UserError(f"lora.alpha must be > 0, got {alpha}")
    trained: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    for path, weight in _targets(params, targets).items():
        layers, inner, outer = weight.shape
        if rank > min(inner, outer):
            raise UserError(
                f"lora.rank {rank} exceeds the smaller side of {path} ({inner} x {outer})"
            )
        # by path, not by order: what else is adapted changes nothing here
        own = jax.random.fold_in(key, _number(path))
        noise = jax.random.normal(own, (layers, inner, rank), jnp.float32)
        trained[f"{path}/lora_a"] = noise / np.float32(np.sqrt(inner))
        trained[f"{path}/lora_b"] = jnp.zeros((layers, rank, outer), jnp.float32)
        frozen[f"{path}/lora_scale"] = jnp.full((layers,), alpha / rank, jnp.float32)
    return unflatten(trained), unflatten(frozen)


def _targets(params: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    """Weights of the linear maps whose path the pattern matches, by that path."""
    flat = flatten(params)
    weights = {
        path.removesuffix("/w"): leaf
        for path, leaf in flat.items()
        if path.startswith("layers/") and path.endswith("/w")
    }
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"lora.targets {pattern!r} is no regular expression: {error}") from None
    found = {path: leaf for path, leaf in weights.items() if compiled.search(path)}
    if not found:
        raise UserError(f"lora.targets {pattern!r} matches none of: {', '.join(sorted(weights))}")
    for path in found:
        if f"{path}/lora_a" in flat:
            raise UserError(f"{path} has an adapter already; merge it before adding another")
    return found


def _number(path: str) -> int:
    """A path as 32 bits, the same on every machine (CRC-32)."""
    return zlib.crc32(path.encode())


def has_lora(params: Mapping[str, Any]) -> bool:
    """Does any linear map carry an adapter?"""
    return any(path.endswith("/lora_a") for path in flatten(params))


def merge_lora(params: Mapping[str, Any]) -> Params:
    """Fold adapters into their weights: w + a @ b * scale, in float32, cast back.

    Args:
      params: nested dictionary of numpy or jax arrays, with or without adapters.
    Returns:
      A nested dictionary without adapter leaves; leaves nothing adapts are the same objects. A
      merged weight keeps its dtype, and is numpy where it was numpy.
    """
    flat = flatten(params)
    merged = {path: leaf for path, leaf in flat.items() if path.rsplit("/", 1)[-1] not in FACTORS}
    for path in flat:
        if path.endswith("/lora_a"):
            parent = path.removesuffix("/lora_a")
            factors = (flat[f"{parent}/{name}"] for name in FACTORS)
            merged[f"{parent}/w"] = _merged(flat[f"{parent}/w"], *factors)
    return unflatten(merged)


def _merged(w: Any, a: Any, b: Any, scale: Any) -> Any:
    xp: Any = np if isinstance(w, np.ndarray) else jnp
    if xp is np:
        a, b, scale = np.asarray(a), np.asarray(b), np.asarray(scale)
        product = np.matmul(a.astype(np.float32), b.astype(np.float32))
    else:
        highest = jax.lax.Precision.HIGHEST
        product = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision=highest)
    scale = scale.astype(xp.float32)[..., None, None]
    return (w.astype(xp.float32) + product * scale).astype(w.dtype)
