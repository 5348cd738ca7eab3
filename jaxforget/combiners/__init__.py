"""How the gradients of several terms become one direction. Nothing here knows a model."""

from jaxforget.combiners.conflict import cagrad, mgda, nash_mtl, orthogonal_retain, pcgrad
from jaxforget.combiners.finishers import Finisher, compose
from jaxforget.combiners.geometric import GeometricState, geometric_disentangle
from jaxforget.combiners.masks import fisher_weighted, layer_mask, path_mask, saliency_mask
from jaxforget.combiners.memory import (
    AverageState,
    BasisState,
    agem,
    extend_basis,
    gem,
    gru,
    ogd,
)
from jaxforget.combiners.sparse import (
    MultiStepState,
    ignore_top_k,
    keep_top_k,
    largest,
    multi_step_sparse,
    sign_top_k,
)
from jaxforget.combiners.subspaces import gpm, gpm_basis
from jaxforget.combiners.sums import check_terms, weighted_sum

__all__ = [
    "AverageState",
    "BasisState",
    "Finisher",
    "GeometricState",
    "MultiStepState",
    "agem",
    "cagrad",
    "check_terms",
    "compose",
    "extend_basis",
    "fisher_weighted",
    "gem",
    "geometric_disentangle",
    "gpm",
    "gpm_basis",
    "gru",
    "ignore_top_k",
    "keep_top_k",
    "largest",
    "layer_mask",
    "mgda",
    "multi_step_sparse",
    "nash_mtl",
    "ogd",
    "orthogonal_retain",
    "path_mask",
    "pcgrad",
    "saliency_mask",
    "sign_top_k",
    "weighted_sum",
]
