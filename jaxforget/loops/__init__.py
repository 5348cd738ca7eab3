"""Step order: pure functions from state to state."""

from jaxforget.loops.bilevel import ofmu
from jaxforget.loops.periodic import periodic, periodic_until
from jaxforget.loops.phi import OfmuSettings
from jaxforget.loops.plain import PLAIN, plain
from jaxforget.loops.primal_dual import PrimalDualSettings, primal_dual
from jaxforget.loops.realised import with_realised_changes

__all__ = [
    "PLAIN",
    "OfmuSettings",
    "PrimalDualSettings",
    "ofmu",
    "periodic",
    "periodic_until",
    "plain",
    "primal_dual",
    "with_realised_changes",
]
