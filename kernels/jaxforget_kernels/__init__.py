"""Kernels of jaxforget, usable alone: they import jax and nothing else.

Each operation has its folder: `reference.py` (the plain form), `xla.py` (the form that runs) and
`api.py` (the public function).
"""

from jaxforget_kernels.cross_entropy.api import linear_cross_entropy
from jaxforget_kernels.kl.api import linear_kl
from jaxforget_kernels.map_logits.api import map_logits
from jaxforget_kernels.project_out.api import extend_orthonormal, project_out
from jaxforget_kernels.threshold_mask.api import threshold_mask

__all__ = [
    "extend_orthonormal",
    "linear_cross_entropy",
    "linear_kl",
    "map_logits",
    "project_out",
    "threshold_mask",
]
