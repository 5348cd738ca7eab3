"""Objectives that methods are made of: scores in, unweighted terms and metrics out.

Weights live in the combiner. Every term and metric is the batch's share of a mean over the step.
All have the metrics `<role>_tokens` of their roles; those on the forget set's likelihood also
`forget_logp`, the mean log-probability of an answer.
"""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp

from jaxforget.engine.types import Reference, Scores
from jaxforget.objectives import adjusted, alternates, representation, sink
from jaxforget.objectives.parts import Assembled, Part, assemble, reference_of
from jaxforget.objectives.retain import Retain, kl_part, nll_part, residual_part, retain_part
from jaxforget.objectives.sequence import (
    check_beta,
    example_lengths,
    mean_sequence_logp,
    npo_losses,
    npo_weights,
    sequence_logp,
    valid_examples,
)
from jaxforget.objectives.shares import counts, share
from jaxforget.objectives.spec import ObjectiveSpec
from jaxforget.objectives.token import mean_logp, token_weights

FORGET, RETAIN, ALTERNATE, POISONED = "forget", "retain", "alternate", "poisoned"
DECOUPLE = "decouple"


def gradient_ascent_objective() -> ObjectiveSpec:
    """Gradient ascent on the forget set: term `forget` = mean log-probability of its targets.

    Source: Jang et al. 2022 (arXiv 2210.01504).
    """
    return assemble({FORGET: _ascent()})


def graddiff(retain: Retain = "nll", *, together: bool = True) -> ObjectiveSpec:
    """Gradient difference: `forget` = mean log p on the forget set, `retain` holds the model.

    Args:
      retain: see `Retain`; the divergences need the starting model's hidden states.
      together: one forward pass over both roles, see `score_roles`.
    Raises:
      UserError: an unknown `retain`.
    Source: Liu et al. 2022 (arXiv 2203.12817); with "kl" Maini et al. 2024 (arXiv 2401.06121).
    """
    return assemble({FORGET: _ascent(), RETAIN: retain_part(retain)}, together=together)


def weighted_graddiff(
    beta: float, beta_unlearned: float = 0.0, retain: Retain = "nll"
) -> ObjectiveSpec:
    """Gradient difference whose forget tokens weigh p^beta (1 - p)^beta_unlearned.

    Args:
      beta, beta_unlearned: exponents >= 0, see `token_weights`; both 0 give `graddiff`.
      retain: see `Retain`.
    Source: WGA, Wang et al. 2025 (arXiv 2502.19301); SatImp, Yang et al. 2025 (arXiv 2505.11953).
    """

    def value(scores, _: Reference):
        mine: Scores = scores[FORGET]
        weights = token_weights(mine.logp, beta, beta_unlearned)
        loss = share(weights * mine.logp, mine.mask, counts(mine).tokens)
        return loss, _logp_metric(mine)

    return assemble({FORGET: Part((FORGET,), value), RETAIN: retain_part(retain)})


def npo_objective(beta: float, retain: Retain = "nll", *, together: bool = True) -> ObjectiveSpec:
    """Negative preference optimisation, see `npo`; `retain` as in `graddiff`.

    Args:
      beta: inverse temperature > 0.
      retain: see `Retain`.
      together: one forward pass over both roles, see `score_roles`.
    Raises:
      UserError: beta not above 0, or an unknown `retain`.

    Metric `npo_weight`: mean share of gradient ascent's pull that is left, 1 at the start.

    Source: Zhang et al. 2024 (arXiv 2404.05868), eq. 3.
    """
    return assemble({FORGET: npo_part(beta), RETAIN: retain_part(retain)}, together=together)


def npo_part(beta: float) -> Part:
    """The forget term of `npo_objective`."""
    check_beta(beta)

    def value(scores, reference: Reference):
        mine: Scores = scores[FORGET]
        start = reference_of(reference, FORGET, mine)
        ours, theirs = sequence_logp(mine), sequence_logp(mine, start.logp)
        valid, total = valid_examples(mine), counts(mine).examples
        weights = jax.lax.stop_gradient(npo_weights(ours, theirs, beta))
        metrics = {**_logp_metric(mine), "npo_weight": share(weights, valid, total)}
        return share(npo_losses(ours, theirs, beta), valid, total), metrics

    return Part((FORGET,), value, {FORGET: frozenset({"logp"})})


def sink_objective(
    base: Literal["npo", "graddiff"],
    *,
    beta: float = 0.1,
    poisoned: bool = False,
    values: sink.Values | None = None,
    layers: int = 8,
    positions: int = 1,
    retain: Retain = "kl",
) -> ObjectiveSpec:
    """Unlearning with a regulariser on the values at attention sinks, with or without a backdoor.

    Terms `forget` (the base's), `retain`, `poisoned` (KL(start || model) on triggered copies that
    stay known) and `value` (see `value_part`, over all roles); the last two only where asked for:
    without them it is the base method bit for bit.

    Args:
      base: whose forget term.
      beta: of "npo".
      poisoned: is there a set of triggered copies?
      values: see `Values`; None: no regulariser.
      layers, positions: see `value_part`.
      retain: see `Retain`.
    Source: Shang et al. 2025 (arXiv 2510.17021).
    """
    roles = (FORGET, RETAIN, *([POISONED] if poisoned else []))
    parts = {
        FORGET: npo_part(beta) if base == "npo" else _ascent(),
        RETAIN: retain_part(retain),
        POISONED: kl_part(POISONED) if poisoned else None,
        "value": sink.value_part(roles, values, layers=layers, positions=positions)
        if values
        else None,
    }
    return assemble(parts)


def simnpo_objective(beta: float, margin: float = 0.0, retain: Retain = "nll") -> ObjectiveSpec:
    """SimNPO, see `simnpo`: NPO on length-normalised log-probabilities without a reference.

    Args:
      beta: inverse temperature > 0.
      margin: delta, nats a token.
      retain: see `Retain`.
    Source: Fan et al. 2024 (arXiv 2410.07163), eq. 3.
    """
    check_beta(beta, "simnpo")

    def value(scores, _: Reference):
        mine: Scores = scores[FORGET]
        lengths = example_lengths(mine)
        means = sequence_logp(mine) / jnp.where(lengths > 0, lengths, 1.0)
        losses = npo_losses(means, jnp.full_like(means, -margin), beta)
        loss = share(losses, valid_examples(mine), counts(mine).examples)
        return loss, _logp_metric(mine)

    return assemble({FORGET: Part((FORGET,), value), RETAIN: retain_part(retain)})


def dpo_objective(beta: float, retain: Retain = "nll") -> ObjectiveSpec:
    """DPO that prefers each forget example's alternate answer; term `forget`.

    Metric `preferred`: share of pairs whose alternate answer has gained on the one to forget.

    Args:
      beta: inverse temperature > 0.
      retain: see `Retain`.
    Source: see `jaxforget.objectives.dpo`.
    """
    return assemble({FORGET: alternates.dpo_part(beta), RETAIN: retain_part(retain)})


def alternate_objective(retain: Retain = "nll") -> ObjectiveSpec:
    """Learn the alternate answers: preference optimisation by refusals, random labels, amnesia.

    Term `alternate` is the negative log-likelihood of the role `alternate`.

    Args:
      retain: see `Retain`.
    Source: PO in Maini et al. 2024 (arXiv 2401.06121), section 3.
    """
    return assemble({ALTERNATE: nll_part(ALTERNATE), RETAIN: retain_part(retain)})


def llmu_objective(retain: Retain = "kl") -> ObjectiveSpec:
    """Gradient ascent, mismatched answers and a retain term: `forget`, `alternate`, `retain`.

    Source: Yao et al. 2023, LLMU (arXiv 2310.10683), eq. 2.
    """
    return assemble(
        {FORGET: _ascent(), ALTERNATE: nll_part(ALTERNATE), RETAIN: retain_part(retain)}
    )


def decoupled(base: ObjectiveSpec, role: str = "general") -> ObjectiveSpec:
    """A method with the prompt-decouple term: harmless uses of the forgotten prompts keep working.

    Args:
      base: any objective.
      role: data set of harmless prompts in the words of those to forget, with normal answers.
    Returns:
      The objective with a further term `decouple`, the role's negative log-likelihood.
    Source: SafeEraser (arXiv 2502.12520), eq. 5.
    """
    part = nll_part(role)
    if isinstance(base.objective, Assembled):
        terms = {**base.objective.terms, DECOUPLE: part}
        return assemble(terms, together=base.objective.together)

    def objective(score, params, batches, reference):
        terms, metrics = base.objective(score, params, batches, reference)
        value, _ = part.value({role: score(params, batches[role])}, reference)
        return {**terms, DECOUPLE: value}, metrics

    needs = replace(base.needs, roles=(*base.needs.roles, role))
    return ObjectiveSpec(objective, needs, (*base.terms, DECOUPLE))


def flat_objective(divergence: alternates.Divergence = "tv") -> ObjectiveSpec:
    """FLAT on pairs of alternate and forget answers, no retain data; see `alternates.flat`."""
    return assemble({FORGET: alternates.flat_part(divergence)})


def ce_u_objective(skip: int = 1, retain: Retain = "none") -> ObjectiveSpec:
    """CE-U; see `adjusted.cross_entropy_unlearning` and `adjusted.ce_u_part`."""
    return assemble({FORGET: adjusted.ce_u_part(skip), RETAIN: retain_part(retain)})


def undial_objective(beta: float, retain: Retain = "none") -> ObjectiveSpec:
    """UNDIAL: self-distillation with the target's logit lowered; see `adjusted.undial`."""
    return assemble({FORGET: adjusted.undial_part(beta), RETAIN: retain_part(retain)})


def maximal_entropy_objective(retain: Retain = "nll") -> ObjectiveSpec:
    """Forget answers become uniform noise; see `adjusted.uniform_cross_entropy`."""
    return assemble({FORGET: adjusted.uniform_part(), RETAIN: retain_part(retain)})


def smoothed_objective(smoothing: float, retain: Retain = "nll") -> ObjectiveSpec:
    """Forget answers lose their certainty; see `adjusted.smoothed_cross_entropy`."""
    return assemble({FORGET: adjusted.smoothed_part(smoothing), RETAIN: retain_part(retain)})


def bad_teacher_objective(retain: Retain = "kl") -> ObjectiveSpec:
    """Forget like a model that never learned: `forget` = KL(random model || model).

    The random model is of the same architecture; it is scored once, before training. The original
    runs both teachers at every step, and its code divides by examples x classes, not examples.

    Source: Chundawat et al. 2023 (arXiv 2205.08096), eq. 2, at temperature 1.
    """
    return assemble({FORGET: kl_part(FORGET, random=True), RETAIN: retain_part(retain)})


def retain_objective(retain: Retain = "nll") -> ObjectiveSpec:
    """Only hold the retain set: fine-tuning, from which forgetting follows by itself if at all."""
    return assemble({RETAIN: retain_part(retain)})


def forget_nll_objective() -> ObjectiveSpec:
    """Learn the forget set once more, for edits that subtract what this changes."""
    return assemble({FORGET: nll_part(FORGET)})


def spread_objective(retain: Retain = "nll") -> ObjectiveSpec:
    """The terms of PDU: flat logits on the forget set; see `adjusted.squared_spread`."""
    return assemble({FORGET: adjusted.spread_part(), RETAIN: retain_part(retain)})


def rmu_objective(
    layer: int, coefficient: float, *, adaptive: bool = False, seed: int = 0
) -> ObjectiveSpec:
    """RMU: `forget` steers a layer's states to a random vector, `retain` holds them in place.

    Args:
      layer: counted from 0, negative from the last; later layers are not even computed.
      coefficient: length of the vector, > 0; with `adaptive` relative to the starting model's
        states.
      adaptive: see `representation.adaptive_rmu_part`.
      seed: of the vector.
    Source: Li et al. 2024 (arXiv 2403.03218); adaptive: Dang et al. 2024 (arXiv 2408.06223).
    """
    part = representation.adaptive_rmu_part if adaptive else representation.rmu_part
    return assemble({FORGET: part(layer, coefficient, seed=seed), RETAIN: residual_part(layer)})


def _ascent() -> Part:
    def value(scores, _: Reference):
        return mean_logp(scores[FORGET]), _logp_metric(scores[FORGET])

    return Part((FORGET,), value)


def _logp_metric(scores: Scores):
    return {"forget_logp": jax.lax.stop_gradient(mean_sequence_logp(scores))}
