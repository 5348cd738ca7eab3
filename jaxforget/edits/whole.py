"""Edits of a whole model from whole passes over its data: what methods name."""

import itertools

from jaxforget.edits.arithmetic import task_arithmetic
from jaxforget.edits.importance import Estimator, importance
from jaxforget.edits.material import Edit, Material
from jaxforget.edits.ssd import ssd
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Metrics

FORGET, RETAIN = "forget", "retain"


def ssd_edit(alpha: float, lam: float, estimator: Estimator) -> Edit:
    """`ssd` with the importance for the forget set and for forget and retain set together.

    Args:
      alpha, lam: see `ssd`.
      estimator: see `importance`.
    """

    def edit(material: Material) -> tuple[Params, Metrics]:
        singly = estimator == "per_example"

        def of(*roles: str) -> Params:
            batches = (material.passes(role, singly=singly) for role in roles)
            return importance(
                material.score,
                material.params,
                itertools.chain.from_iterable(batches),
                estimator=estimator,
                frozen=material.frozen,
            )

        everything = of(RETAIN, FORGET)
        return ssd(material.params, of(FORGET), everything, alpha=alpha, lam=lam)

    return edit


def task_arithmetic_edit(scale: float) -> Edit:
    """`task_arithmetic` with the model that was fine-tuned on the forget set."""

    def edit(material: Material) -> tuple[Params, Metrics]:
        return task_arithmetic(material.params, material.tuned, scale=scale), {}

    return edit
