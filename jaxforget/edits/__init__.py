"""One-shot edits of weights: no training, pure functions of parameter trees."""

from jaxforget.edits.amnesiac import Update, amnesiac, read_updates, record_updates
from jaxforget.edits.arithmetic import interpolate, task_arithmetic, whp_logits
from jaxforget.edits.fisher_noise import fisher_forgetting, golatkar_forgetting
from jaxforget.edits.importance import importance
from jaxforget.edits.influence import (
    gradient_norms,
    gradient_restriction,
    influence_approximation,
    mean_gradient,
    penalised,
)
from jaxforget.edits.null_space import (
    closed_form_edit,
    null_space_projector,
    second_moment,
    spread,
)
from jaxforget.edits.sparsity import l1_decay, l1_schedule
from jaxforget.edits.ssd import ssd
from jaxforget.edits.woodfisher import example_gradients, woodfisher

__all__ = [
    "Update",
    "amnesiac",
    "closed_form_edit",
    "example_gradients",
    "fisher_forgetting",
    "golatkar_forgetting",
    "gradient_norms",
    "gradient_restriction",
    "importance",
    "influence_approximation",
    "interpolate",
    "l1_decay",
    "l1_schedule",
    "mean_gradient",
    "null_space_projector",
    "penalised",
    "read_updates",
    "record_updates",
    "second_moment",
    "spread",
    "ssd",
    "task_arithmetic",
    "whp_logits",
    "woodfisher",
]
