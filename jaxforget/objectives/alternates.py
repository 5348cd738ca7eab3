"""Losses that offer something else to say: refusals, wrong labels, other answers.

The role `alternate` holds them. Where a loss weighs each against the answer it replaces, the
roles are aligned: example i of one belongs to example i of the other.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Reference, Scores
from jaxforget.objectives.parts import Part, reference_of
from jaxforget.objectives.representation import FORGET
from jaxforget.objectives.sequence import (
    check_beta,
    dpo_losses,
    example_lengths,
    sequence_logp,
    valid_examples,
)
from jaxforget.objectives.shares import counts, share

ALTERNATE = "alternate"

type Divergence = Literal["tv", "kl", "pearson", "js"]


def flat(alternate: Array, forget: Array, divergence: Divergence = "tv") -> Array:
    """FLAT: -g(alternate) + f*(g(forget)), a variational f-divergence between two answers.

    Args:
      alternate, forget: mean probability of each answer's tokens, in [0, 1], any one shape.
      divergence: "tv": g = tanh(x) / 2, f* = identity; "kl": g = x, f* = exp(x - 1); "pearson":
        g = x, f* = x^2 / 4 + x; "js": log(1 + e^-a) + f + log(1 + e^-f) - 2 log 2.
    Returns:
      float32 of the same shape.
    Raises:
      UserError: an unknown divergence.
    Source: Wang et al. 2024 (arXiv 2410.11143), table 1.
    """
    if divergence == "tv":
        return -jnp.tanh(alternate) / 2 + jnp.tanh(forget) / 2
    if divergence == "kl":
        return -alternate + jnp.exp(forget - 1)
    if divergence == "pearson":
        return -alternate + jnp.square(forget) / 4 + forget
    if divergence == "js":
        softplus = jax.nn.softplus
        return softplus(-alternate) + forget + softplus(-forget) - 2 * jnp.log(2.0)
    raise UserError(f"flat: no such divergence {divergence!r}. Allowed: tv, kl, pearson, js.")


def dpo_part(beta: float) -> Part:
    """Preference for the alternate answers over those to forget; see `sequence.dpo`."""
    check_beta(beta, "dpo")

    def value(scores, reference: Reference):
        gap = _gap(scores[ALTERNATE], reference, ALTERNATE) - _gap(
            scores[FORGET], reference, FORGET
        )
        mine = scores[FORGET]
        loss = share(dpo_losses(gap, beta), valid_examples(mine), counts(mine).examples)
        metrics = {
            "preferred": share(
                (gap > 0).astype(jnp.float32), valid_examples(mine), counts(mine).examples
            )
        }
        return loss, jax.lax.stop_gradient(metrics)

    logp = frozenset({"logp"})
    return Part(
        (FORGET, ALTERNATE),
        value,
        {FORGET: logp, ALTERNATE: logp},
        aligned=frozenset({ALTERNATE}),
    )


def flat_part(divergence: Divergence = "tv") -> Part:
    """FLAT over pairs of alternate and forget answers; see `flat`.

    An answer's probability is the mean over its own labelled tokens; the published code divides
    by the padded length.
    """
    flat(jnp.zeros(()), jnp.zeros(()), divergence)

    def value(scores, _: Reference):
        mine = scores[FORGET]
        losses = flat(_mean_probability(scores[ALTERNATE]), _mean_probability(mine), divergence)
        return share(losses, valid_examples(mine), counts(mine).examples), {}

    return Part((FORGET, ALTERNATE), value, aligned=frozenset({ALTERNATE}))


def _gap(scores: Scores, reference: Reference, role: str) -> Array:
    start = reference_of(reference, role, scores).logp
    return sequence_logp(scores) - sequence_logp(scores, jax.lax.stop_gradient(start))


def _mean_probability(scores: Scores) -> Array:
    lengths = example_lengths(scores)
    total = sequence_logp(scores, jnp.exp(scores.logp))
    return total / jnp.where(lengths > 0, lengths, 1.0)
