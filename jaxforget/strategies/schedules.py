"""Learning rates over a stream of tasks: re-warmed, re-decayed, and without an end."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxforget.combiners.terms import number, whole
from jaxforget.engine.errors import UserError


def rewarmed(
    peak: float, steps: Sequence[int], *, warmup: float = 0.01, final: float = 0.1
) -> optax.Schedule:
    """Linear warm-up to the peak and cosine decay from it, anew in every task.

    Args:
      peak: eta_max > 0.
      steps: of each task, >= 1.
      warmup: share of a task's steps that rise, in [0, 1); the first task's too.
      final: eta_min / eta_max at a task's last step, in [0, 1].
    Returns:
      Step from 0 -> learning rate, float32. The first step of a warm-up uses peak / its length, so
      every step moves.
    Raises:
      UserError: a value out of range.
    Source: Ibrahim et al. 2024 (arXiv 2403.08763), section 4.
    """
    _check("rewarmed", peak, steps)
    number("rewarmed", "warmup", warmup, 0.0, 0.99)
    number("rewarmed", "final", final, 0.0, 1.0)
    lengths = jnp.array(list(steps), jnp.int32)
    ends = jnp.cumsum(lengths)
    rises = jnp.array([round(warmup * count) for count in steps], jnp.int32)

    def rate(count: ArrayLike) -> Array:
        count = jnp.asarray(count)
        task = jnp.minimum((count >= ends).sum(), len(lengths) - 1)
        here = jnp.minimum(count - (ends[task] - lengths[task]), lengths[task])
        rise = rises[task]
        rising = peak * (here + 1) / jnp.maximum(rise, 1)
        left = jnp.maximum(lengths[task] - 1 - rise, 1)
        passed = jnp.clip((here - rise) / left, 0.0, 1.0)
        falling = peak * (final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * passed)))
        return jnp.where(here < rise, rising, falling).astype(jnp.float32)

    return rate


def infinite(
    peak: float,
    constant: float,
    *,
    warmup: int,
    cooldown: int,
    anneal: tuple[int, int] | None = None,
    final: float | None = None,
) -> optax.Schedule:
    """The infinite learning rate: warm-up, cosine cool-down, a constant, and annealing at will.

    Training on the next corpus goes on at the constant, from the parameters before the annealing.

    Args:
      peak: eta_max > 0.
      constant: eta_c, > 0 and at most the peak.
      warmup: steps that rise linearly, >= 0.
      cooldown: steps of the half cosine from peak to constant, >= 0.
      anneal: (first step, steps) of the exponential decay to `final`, after the cool-down; None:
        the constant has no end.
      final: eta_min at the end of the annealing, > 0 and at most the constant; stays afterwards.
    Returns:
      Step from 0 -> learning rate, float32.
    Raises:
      UserError: a value out of range; anneal without final or the reverse.
    Source: Ibrahim et al. 2024 (arXiv 2403.08763), section 7.4, the variant "cosine inf".
    """
    _check("infinite", peak, (1,))
    if not 0 < number("infinite", "constant", constant) <= peak:
        raise UserError(f"infinite: constant must be above 0 and at most the peak, got {constant}")
    whole("infinite", "warmup", warmup, 0)
    whole("infinite", "cooldown", cooldown, 0)
    if (anneal is None) != (final is None):
        raise UserError("infinite: anneal and final belong together; give both or neither")
    begin, length = (0, 1) if anneal is None else anneal
    if anneal is not None and final is not None:
        whole("infinite", "the first step of anneal", begin, warmup + cooldown)
        whole("infinite", "the steps of anneal", length, 1)
        if not 0 < number("infinite", "final", final) <= constant:
            raise UserError(f"infinite: final must be above 0 and at most {constant}, got {final}")

    def rate(count: ArrayLike) -> Array:
        t = jnp.asarray(count).astype(jnp.float32)
        rising = peak * (t + 1) / max(warmup, 1)
        passed = jnp.clip((t - warmup) / max(cooldown, 1), 0.0, 1.0)
        flat = constant + (peak - constant) / 2 * (1 + jnp.cos(jnp.pi * passed))
        flat = flat if cooldown else jnp.full_like(t, constant)
        value = jnp.where(t < warmup, rising, flat)
        if final is not None:
            share = jnp.clip((t - begin) / length, 0.0, 1.0)
            value = jnp.where(t >= begin, constant * (final / constant) ** share, value)
        return value.astype(jnp.float32)

    return rate


def _check(who: str, peak: float, steps: Sequence[int]) -> None:
    if number(who, "peak", peak) == 0:
        raise UserError(f"{who}: peak must be above 0")
    if not steps:
        raise UserError(f"{who}: needs the steps of at least one task")
    for count in steps:
        whole(who, "steps", count, 1)
