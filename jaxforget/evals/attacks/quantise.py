"""Quantisation: does rounding the weights undo a small update?"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jax import Array

from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.evals.attacks.attack import AuditData, Finding, of_each
from jaxforget.evals.attacks.known import known, tokens_of


@dataclass(frozen=True)
class Quantise:
    """Settings of the quantisation attack.

    Attributes:
      bits: of a weight, 8 or 4.
      group: inputs that share one scale; 0: all inputs of an output.
    """

    bits: Literal[4, 8] = 4
    group: Annotated[int, Ge(0)] = 0


def rounded(weight: Array, *, bits: int, group: int = 0) -> Array:
    """A matrix to symmetric integers and back, each output (or group of inputs) on its own scale.

    Args:
      weight: `[.., d_in, d_out]`, floating.
      bits: 2 .. 16; the integers reach from -(2^(bits-1) - 1) to 2^(bits-1) - 1.
      group: inputs that share a scale; 0: all. The last group may be smaller.
    Returns:
      Array like `weight`; differs by at most half a scale anywhere. Zeros stay zeros.
    """
    inputs, most = weight.shape[-2], 2 ** (bits - 1) - 1
    size = group or inputs
    wide = weight.astype(jnp.float32)
    gap = -inputs % size
    wide = jnp.pad(wide, [(0, 0)] * (wide.ndim - 2) + [(0, gap), (0, 0)])
    blocks = wide.reshape(*wide.shape[:-2], -1, size, wide.shape[-1])
    scale = jnp.abs(blocks).max(axis=-2, keepdims=True) / most
    whole = jnp.round(blocks / jnp.where(scale > 0, scale, 1.0))
    back = (whole * scale).reshape(wide.shape)[..., :inputs, :]
    return back.astype(weight.dtype)


def quantised(params: Params, *, bits: int, group: int = 0) -> Params:
    """Every matrix inside the layers rounded; embeddings, head, norms and biases stay exact."""
    flat = flatten(params)
    return unflatten(
        {
            path: rounded(leaf, bits=bits, group=group)
            if path.startswith("layers/") and path.endswith("/w")
            else leaf
            for path, leaf in flat.items()
        }
    )


def quantise(lm: Any, data: AuditData, settings: Quantise) -> Finding:
    """The forget probability of the model with rounded weights.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`.
      settings: see `Quantise`.
    Returns:
      Scores `prob_before` and `memorised`.
    Source: Zhang et al. 2024 (arXiv 2410.16454): 4-bit rounding brings back much of what small
      updates removed. Symmetric rounding to the nearest, one scale an output, is chosen here.
    """
    params = jax.jit(lambda p: quantised(p, bits=settings.bits, group=settings.group))(lm.params)
    rows = tokens_of(lm, data.forget, data)
    before, found = known(lm, lm.params, rows, data), known(lm, params, rows, data)
    scores = {
        "prob_before": float(before.prob.mean()),
        "memorised": float(found.memorised.mean()),
    }
    return of_each(found.prob, scores=scores)


def budget(settings: Quantise) -> str:
    """What it costs the attacker."""
    return f"one rounding of the layers' matrices to {settings.bits} bits"
