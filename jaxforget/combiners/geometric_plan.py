"""The arguments of `geometric_disentangle`, checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxforget.combiners.faces import MAX_VECTORS
from jaxforget.combiners.terms import number, whole
from jaxforget.engine.errors import UserError

type Stage = Literal["update", "gradient"]
type Sides = Literal["one", "both"]
type Metric = Literal["second_moment", "identity"]


@dataclass(frozen=True)
class Plan:
    """What the parts of `geometric_disentangle` share; `slots` is the size of the memory."""

    weights: Mapping[str, float]
    protect: tuple[str, ...]
    slots: int
    stage: Stage
    sides: Sides
    keep: float | None
    metric: Metric
    decay: float
    epsilon: float
    scope: str | None
    duplicate: float


def checked(plan: Plan, covectors: int, repair: float, memory_dtype: str) -> Plan:
    """The plan, if its arguments are in range and each has an effect.

    Raises:
      UserError: naming the argument that is not.
    """
    who = "geometric_disentangle"
    whole(who, "covectors", covectors, 0, MAX_VECTORS)
    if not plan.protect:
        raise UserError(f"{who}: protect must name at least one term")
    if 0 < covectors < len(plan.protect):
        raise UserError(
            f"{who}: covectors is {covectors}, but {len(plan.protect)} terms are protected"
        )
    choices = {
        "stage": (plan.stage, ("update", "gradient")),
        "sides": (plan.sides, ("one", "both")),
        "metric": (plan.metric, ("second_moment", "identity")),
        "memory_dtype": (memory_dtype, ("bfloat16", "float32")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"{who}: {key} must be one of {list(allowed)}, got {value!r}")
    number(who, "repair", repair)
    if plan.keep is not None and plan.keep != math.inf:
        number(who, "keep", plan.keep)
    if (plan.keep is not None or repair) and (plan.stage, plan.sides) != ("gradient", "both"):
        raise UserError(f"{who}: keep and repair need stage 'gradient' and sides 'both'")
    if number(who, "decay", plan.decay) >= 1 or number(who, "epsilon", plan.epsilon) == 0:
        raise UserError(f"{who}: decay must be below 1 and epsilon above 0")
    number(who, "duplicate", plan.duplicate, -1.0, 1.0)
    return plan
