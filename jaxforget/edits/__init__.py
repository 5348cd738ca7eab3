"""One-shot edits of weights: no training, pure functions of parameter trees."""

from jaxforget.edits.arithmetic import interpolate, task_arithmetic, whp_logits
from jaxforget.edits.fisher_noise import fisher_forgetting, golatkar_forgetting
from jaxforget.edits.importance import importance
from jaxforget.edits.influence import (
    gradient_norms,
    gradient_restriction,
    influence_approximation,
    mean_gradient,
)
from jaxforget.edits.ssd import ssd
from jaxforget.edits.woodfisher import example_gradients, woodfisher

__all__ = [
    "example_gradients",
    "fisher_forgetting",
    "golatkar_forgetting",
    "gradient_norms",
    "gradient_restriction",
    "importance",
    "influence_approximation",
    "interpolate",
    "mean_gradient",
    "ssd",
    "task_arithmetic",
    "whp_logits",
    "woodfisher",
]
