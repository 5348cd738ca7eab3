"""SCRUB: a student that leaves its teacher on one set and stays with it on another."""

import math
from collections.abc import Mapping
from dataclasses import replace

from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Metrics, Reference, Scores
from jaxforget.objectives.parts import assemble
from jaxforget.objectives.retain import RETAIN, kl_part, nll_part
from jaxforget.objectives.spec import ObjectiveSpec

FORGET = "forget"


def scrub_objective(
    nll_weight: float = 1.0, kl_weight: float = 0.5, temperature: float = 2.0
) -> ObjectiveSpec:
    """SCRUB: away from the starting model on the forget set, with it and the answers on the rest.

    `forget` = -KL_T(start || model), `retain` = nll_weight NLL + kl_weight KL_T(start || model).
    The terms are read by steps of their own, see `jaxforget.loops.periodic_until`. KL_T carries
    T^2, as in the original, whose code averages over examples; here it is over labelled targets.

    Args:
      nll_weight, kl_weight: gamma and alpha, finite and >= 0.
      temperature: T > 0.
    Raises:
      UserError: a weight or temperature out of range.
    Source: Kurmanji et al. 2023 (arXiv 2302.09880), eq. 3.
    """
    for name, value in (("nll_weight", nll_weight), ("kl_weight", kl_weight)):
        if not 0 <= value < math.inf:
            raise UserError(f"scrub: {name} must be finite and at least 0, got {value}")
    if not 0 < temperature < math.inf:
        raise UserError(f"scrub: temperature must be finite and above 0, got {temperature}")
    leave = kl_part(FORGET, temperature=temperature)
    stay, answer = kl_part(RETAIN, temperature=temperature), nll_part(RETAIN)

    def away(scores: Mapping[str, Scores], reference: Reference) -> tuple[Array, Metrics]:
        return -leave.value(scores, reference)[0], {}

    def held(scores: Mapping[str, Scores], reference: Reference) -> tuple[Array, Metrics]:
        kl, nll = (part.value(scores, reference)[0] for part in (stay, answer))
        return nll_weight * nll + kl_weight * kl, {}

    terms = {FORGET: replace(leave, value=away), RETAIN: replace(stay, value=held)}
    return assemble(terms, together=False)  # a step reads one term, whose rows alone must cost
