"""Rotary position embeddings: which frequencies a checkpoint asks for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxforget.engine.errors import UserError, did_you_mean

KINDS = ("default", "linear", "llama3", "longrope")


@dataclass(frozen=True)
class Rope:
    """One table of rotary frequencies.

    Attributes:
      theta: base period > 0.
      dim: how many leading components of each head rotate, even; component i pairs with
        i + dim / 2.
      kind: "default"; "linear" divides every frequency by `factor`; "llama3" divides only the
        slow ones; "longrope" divides each by its own entry of `factors`.
      factor: see `kind`, >= 1.
      low, high: Llama 3's low_freq_factor and high_freq_factor.
      original: context length before scaling, tokens.
      factors: LongRoPE's divisors for contexts up to `original`, one per frequency.
      scale: multiplies cosine and sine.
    """

    theta: float
    dim: int
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 0
    factors: tuple[float, ...] = ()
    scale: float = 1.0

    def frequencies(self) -> np.ndarray:
        """Angle per position, radians, float32 `[dim / 2]`."""
        base = self.theta ** -(np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
        if self.kind == "linear":
            base = base / self.factor
        elif self.kind == "longrope":
            base = base / np.asarray(self.factors, np.float64)
        elif self.kind == "llama3":
            turns = self.original * base / (2 * math.pi)
            smooth = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
            base = base * (smooth + (1 - smooth) / self.factor)
        return base.astype(np.float32)


def from_hf(
    given: Mapping[str, Any],
    *,
    where: str,
    head_dim: int,
    theta: float,
    context: int,
    original: int | None,
) -> Rope:
    """Read one dictionary of rope parameters.

    Args:
      given: `rope_parameters` (or the older `rope_scaling`) of a config.json; may be empty, then
        the whole head rotates.
      where: name of that key, for messages.
      head_dim: components of a head.
      theta: base period where `given` has none.
      context: max_position_embeddings.
      original: original_max_position_embeddings of the config's top level, wins over `given`.
    Returns:
      The table.
    Raises:
      UserError: unknown kind, missing or impossible parameter.
    """
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in KINDS:
        raise UserError(f"config.json: {where}: rope_type {kind!r}: {did_you_mean(kind, KINDS)}")
    base = _number(given, "rope_theta", where, theta)
    fraction = _number(given, "partial_rotary_factor", where, 1.0)
    dim = int(head_dim * fraction)
    if dim % 2 or not 0 < dim <= head_dim:
        raise UserError(
            f"config.json: {where}: {fraction} of head_dim {head_dim} gives {dim} rotating "
            f"components; allowed: an even number from 2 to {head_dim}"
        )
    if kind == "default":
        return Rope(base, dim)
    if kind == "linear":
        return Rope(base, dim, kind, factor=_number(given, "factor", where))
    before = original or int(_number(given, "original_max_position_embeddings", where, context))
    if kind == "llama3":
        low, high = (_number(given, f"{side}_freq_factor", where) for side in ("low", "high"))
        if not low < high:
            raise UserError(f"config.json: {where}: low_freq_factor must be < high_freq_factor")
        factor = _number(given, "factor", where)
        return Rope(base, dim, kind, factor=factor, low=low, high=high, original=before)
    return _longrope(given, where, base, dim, context, before)


def _longrope(
    given: Mapping[str, Any], where: str, base: float, dim: int, context: int, before: int
) -> Rope:
    factors = given.get("short_factor")
    if not isinstance(factors, list | tuple) or len(factors) != dim // 2:
        raise UserError(f"config.json: {where}: short_factor must be a list of {dim // 2} numbers")
    factor = _number(given, "factor", where, context / before)
    natural = math.sqrt(1 + math.log(factor) / math.log(before)) if factor > 1 else 1.0
    scale = _number(given, "attention_factor", where, natural)
    divisors = tuple(float(f) for f in factors)
    return Rope(base, dim, "longrope", original=before, factors=divisors, scale=scale)


def _number(given: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = given.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"config.json: {where}: {key} must be a number > 0, got {value!r}")
    return float(value)
