"""The logit lens: does an inner layer still hold the answer that the last one hides?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxforget.evals.attacks.attack import AuditData, Finding, of_each
from jaxforget.evals.attacks.known import tokens_of
from jaxforget.evals.attacks.layers import by_example
from jaxforget.models.lens import layer_logp


@dataclass(frozen=True)
class LogitLens:
    """No settings."""


def logit_lens(lm: Any, data: AuditData, settings: LogitLens) -> Finding:
    """The forget probability as the model's own head reads it in every layer.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`.
      settings: none.
    Returns:
      Curve `prob` over layers, from 0; scores `prob_last` (what the model says) and `layer`, the
      layer of the largest mean. `known` takes every record's best layer.
    Source: nostalgebraist 2020; for unlearned models Patil et al. 2023 (arXiv 2309.17410).
    """
    tokenised = tokens_of(lm, data.forget, data)
    found = by_example(layer_logp, lm, lm.params, tokenised, data)
    prob = np.exp(found.astype(np.float64))
    means = prob.mean(axis=0)
    return of_each(
        prob.max(axis=1),
        scores={"prob_last": float(means[-1]), "layer": float(means.argmax())},
        curves={"prob": [(float(layer), float(mean)) for layer, mean in enumerate(means)]},
    )


def budget(settings: LogitLens) -> str:
    """What it costs the attacker."""
    return "one forward pass, with the output head applied to every layer"
