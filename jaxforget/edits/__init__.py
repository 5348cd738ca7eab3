"""One-shot edits of weights: no training, pure functions of parameter trees."""

from jaxforget.edits.arithmetic import interpolate, task_arithmetic, whp_logits
from jaxforget.edits.importance import importance
from jaxforget.edits.ssd import ssd

__all__ = ["importance", "interpolate", "ssd", "task_arithmetic", "whp_logits"]
