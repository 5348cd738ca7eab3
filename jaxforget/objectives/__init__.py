"""Losses: pure functions of scores. Nothing here knows a model, a tokenizer or a file.

Functions on arrays (`npo`, `nll`, ...) return scalars; factories (`npo_objective`, `graddiff`,
...) return an `ObjectiveSpec` that the engine trains with.
"""

from jaxforget.objectives.adjusted import (
    cross_entropy_unlearning,
    smoothed_cross_entropy,
    squared_spread,
    undial,
    uniform_cross_entropy,
)
from jaxforget.objectives.alternates import flat
from jaxforget.objectives.distribution import kl_divergence, reference_kl
from jaxforget.objectives.factories import (
    alternate_objective,
    bad_teacher_objective,
    ce_u_objective,
    decoupled,
    dpo_objective,
    flat_objective,
    forget_nll_objective,
    graddiff,
    gradient_ascent_objective,
    llmu_objective,
    maximal_entropy_objective,
    npo_objective,
    retain_objective,
    rmu_objective,
    simnpo_objective,
    sink_objective,
    smoothed_objective,
    spread_objective,
    undial_objective,
    weighted_graddiff,
)
from jaxforget.objectives.likelihood import nll_objective
from jaxforget.objectives.parts import Part, assemble
from jaxforget.objectives.roles import score_roles
from jaxforget.objectives.scrub import scrub_objective
from jaxforget.objectives.sequence import dpo, npo, sequence_logp, simnpo, valid_examples
from jaxforget.objectives.shares import counts, share
from jaxforget.objectives.sink import value_norms
from jaxforget.objectives.spec import Needs, ObjectiveSpec
from jaxforget.objectives.token import gradient_ascent, mean_logp, nll, weighted_ascent

__all__ = [
    "sink_objective",
    "value_norms",
    "smoothed_objective",
    "retain_objective",
    "forget_nll_objective",
    "bad_teacher_objective",
    "Needs",
    "ObjectiveSpec",
    "Part",
    "alternate_objective",
    "assemble",
    "ce_u_objective",
    "counts",
    "cross_entropy_unlearning",
    "decoupled",
    "dpo",
    "dpo_objective",
    "flat",
    "flat_objective",
    "graddiff",
    "gradient_ascent",
    "gradient_ascent_objective",
    "kl_divergence",
    "llmu_objective",
    "maximal_entropy_objective",
    "mean_logp",
    "nll",
    "nll_objective",
    "npo",
    "npo_objective",
    "reference_kl",
    "rmu_objective",
    "score_roles",
    "scrub_objective",
    "sequence_logp",
    "share",
    "simnpo",
    "simnpo_objective",
    "smoothed_cross_entropy",
    "spread_objective",
    "squared_spread",
    "undial",
    "undial_objective",
    "uniform_cross_entropy",
    "valid_examples",
    "weighted_ascent",
    "weighted_graddiff",
]
