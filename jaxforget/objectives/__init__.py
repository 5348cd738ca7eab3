"""Losses: pure functions of scores. Nothing here knows a model, a tokenizer or a file.

Functions on arrays (`npo`, `nll`, ...) return scalars; factories (`npo_objective`, `graddiff`,
...) return an `ObjectiveSpec` that the engine trains with.
"""

from jaxforget.objectives.distribution import kl_divergence, reference_kl
from jaxforget.objectives.factories import graddiff, gradient_ascent_objective, npo_objective
from jaxforget.objectives.likelihood import nll_objective
from jaxforget.objectives.roles import score_roles
from jaxforget.objectives.sequence import npo, sequence_logp, valid_examples
from jaxforget.objectives.shares import counts, share
from jaxforget.objectives.spec import Needs, ObjectiveSpec
from jaxforget.objectives.token import gradient_ascent, mean_logp, nll

__all__ = [
    "Needs",
    "ObjectiveSpec",
    "counts",
    "graddiff",
    "gradient_ascent",
    "gradient_ascent_objective",
    "kl_divergence",
    "mean_logp",
    "nll",
    "nll_objective",
    "npo",
    "npo_objective",
    "reference_kl",
    "score_roles",
    "sequence_logp",
    "share",
    "valid_examples",
]
