"""Sparsity-promoting fine-tuning: an L1 penalty that fades out, as a gradient transformation."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxforget.combiners.terms import number, whole
from jaxforget.engine.errors import UserError


def l1_schedule(
    scale: float = 5e-4, *, steps: int, stop: int = 0, every: int = 1
) -> optax.Schedule:
    """Weight of the penalty: scale (1 - e / E), and 0 from E on.

    Args:
      scale: weight of the first step, >= 0.
      steps: of the whole run, >= 1.
      stop: how many steps at the end have no penalty, from 0 to steps - 1; E = steps - stop.
      every: steps for which the weight stays, >= 1; e is counted in whole multiples of them. The
        steps of an epoch give the published staircase.
    Returns:
      Step, from 0 -> weight, float32.
    Raises:
      UserError: a value out of range.
    """
    who = "l1_decay"
    number(who, "scale", scale)
    whole(who, "steps", steps, 1)
    whole(who, "stop", stop, 0, steps - 1)
    whole(who, "every", every, 1)
    end = steps - stop
    if every > end:
        raise UserError(
            f"{who}: every = {every} is more than the {end} steps with a penalty: it never falls"
        )

    def weight(count: ArrayLike) -> Array:
        passed = jnp.asarray(count) // every * every
        left = scale * (1.0 - passed.astype(jnp.float32) / end)
        return jnp.where(jnp.asarray(count) < end, left, 0.0)

    return weight


def l1_decay(
    scale: float = 5e-4, *, steps: int, stop: int = 0, every: int = 1
) -> optax.GradientTransformation:
    """Add weight * sign(theta) to the gradient: that of the loss plus weight * ||theta||_1.

    Put it first in a chain, before clipping and the optimizer: there it equals differentiating
    the penalised loss, with subgradient 0 at 0 (where JAX gives `jnp.abs` 1), so that the penalty
    leaves zeros alone. Fine-tuning on the retain set with it forgets. `optax.masked` keeps it off
    some leaves.

    Args:
      scale, steps, stop, every: see `l1_schedule`. A scale of 0 changes nothing.
    Returns:
      An optax transformation that needs `params` in `update`.
    Raises:
      UserError: a value out of range.
    Source: Jia et al. 2023 (arXiv 2304.04934), with the linearly falling weight of its published
      code.
    """
    weight = l1_schedule(scale, steps=steps, stop=stop, every=every)
    if scale == 0:
        return optax.identity()

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByScheduleState]:
        if params is None:
            raise ValueError("l1_decay: update needs the parameters")
        assert isinstance(state, optax.ScaleByScheduleState)
        now = weight(state.count)

        def add(gradient: Array, leaf: Array) -> Array:
            return gradient + (now * jnp.sign(leaf)).astype(gradient.dtype)

        added = jax.tree.map(add, updates, params)
        return added, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
