"""Optimizer and schedule from a config; everything underneath is optax."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax
from annotated_types import Ge, Gt, Le

from jaxforget.engine.errors import UserError
from jaxforget.engine.moments import stored_as
from jaxforget.engine.partwise import Entrywise, entrywise
from jaxforget.engine.tree import path_string


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, schedule and clipping.

    Attributes:
      name: "adamw", "sgd" or "lion".
      learning_rate: peak, > 0.
      schedule: after the warm-up: "constant", or "linear" or "cosine" decay to
        `final_fraction` of the peak at the last step.
      warmup_fraction: share of all steps spent rising linearly from 0, in [0, 1).
      final_fraction: in [0, 1].
      weight_decay: decoupled, on matrices only (not norms, biases or position tables).
      beta1, beta2, epsilon: of adamw and lion (lion has no epsilon).
      momentum: of sgd.
      clip_norm: largest global gradient norm; None: no clipping.
      moments: how moments are stored between steps: "float32", "bfloat16" (half the bytes) or
        "int8" (a quarter); the latter two by stochastic rounding, see `moments.stored_as`.
    """

    name: Literal["adamw", "sgd", "lion"] = "adamw"
    learning_rate: Annotated[float, Gt(0)] = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_fraction: Annotated[float, Ge(0), Le(0.99)] = 0.0
    final_fraction: Annotated[float, Ge(0), Le(1)] = 0.0
    weight_decay: Annotated[float, Ge(0)] = 0.0
    beta1: Annotated[float, Ge(0), Le(1)] = 0.9
    beta2: Annotated[float, Ge(0), Le(1)] = 0.999
    epsilon: Annotated[float, Gt(0)] = 1e-8
    momentum: Annotated[float, Ge(0), Le(1)] = 0.0
    clip_norm: Annotated[float, Gt(0)] | None = 1.0
    moments: Literal["float32", "bfloat16", "int8"] = "float32"


type Schedule = Callable[[Any], Any]


def make_schedule(config: OptimizerConfig, *steps: int) -> Schedule:
    """Learning rate as a function of the step.

    Args:
      config: see `OptimizerConfig`.
      steps: of the run, >= 1; several: of its stretches, each of which runs through the schedule.
    """
    each = [_one_schedule(config, count) for count in steps]
    if len(each) == 1:
        return each[0]
    ends = np.cumsum(steps[:-1]).tolist()
    return optax.join_schedules(each, ends)


def _one_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    warmup = int(round(config.warmup_fraction * steps))
    peak, rest = config.learning_rate, max(steps - warmup, 1)
    end = peak * config.final_fraction
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, end, rest)
    else:
        after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    if not warmup:
        return after
    # the first update already moves: step 0 uses peak / warmup, as torch's schedulers do not
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimizerConfig, *steps: int, schedule: Schedule | None = None
) -> Entrywise:
    """The optax chain: clip, then the optimizer with its schedule and masked weight decay.

    Args:
      config: see `OptimizerConfig`.
      steps: see `make_schedule`.
      schedule: takes the place of the configured learning rate and schedule; None: it does not.
    Raises:
      UserError: an option that the chosen optimizer would ignore.
    """
    schedule = make_schedule(config, *steps) if schedule is None else schedule
    if config.name == "sgd":
        if config.weight_decay:
            raise UserError("optimizer.weight_decay: sgd takes none here; use adamw or lion")
        if config.moments != "float32" and not config.momentum:
            raise UserError("optimizer.moments: sgd without optimizer.momentum has none")
        core = optax.sgd(schedule, momentum=config.momentum or None)
    elif config.momentum:
        raise UserError(f"optimizer.momentum: only sgd uses it, not {config.name}; set beta1")
    elif config.name == "lion":
        core = optax.lion(
            schedule, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=decayed
        )
    else:
        core = optax.adamw(
            schedule,
            config.beta1,
            config.beta2,
            config.epsilon,
            weight_decay=config.weight_decay,
            mask=decayed,
        )
    return entrywise(stored_as(core, config.moments), config.clip_norm)


_UNDECAYED = re.compile(r"(norm[^/]*/|/b$|(^|/)bias$|embed/pos$|/scale$)")


def decayed(params: Any) -> Any:
    """Mask of the leaves that weight decay touches: matrices, by path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not _UNDECAYED.search(path_string(path)), params
    )
