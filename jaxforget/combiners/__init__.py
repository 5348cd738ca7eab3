"""How the gradients of several terms become one direction. Nothing here knows a model."""

from jaxforget.combiners.conflict import cagrad, mgda, nash_mtl, orthogonal_retain, pcgrad
from jaxforget.combiners.geometric import GeometricState, geometric_disentangle
from jaxforget.combiners.sums import check_terms, weighted_sum

__all__ = [
    "GeometricState",
    "cagrad",
    "check_terms",
    "geometric_disentangle",
    "mgda",
    "nash_mtl",
    "orthogonal_retain",
    "pcgrad",
    "weighted_sum",
]
