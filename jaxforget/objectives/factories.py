"""Objectives that methods are made of: scores in, unweighted terms and metrics out.

Weights live in the combiner. Every term and metric is the batch's share of a mean over the step.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import jax
from jax import Array

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.tree import Params
from jaxforget.engine.types import (
    Batches,
    Metrics,
    Reference,
    ReferenceScores,
    ScoreFn,
    Scores,
    Terms,
)
from jaxforget.objectives.distribution import reference_kl
from jaxforget.objectives.roles import score_roles
from jaxforget.objectives.sequence import (
    check_beta,
    npo_losses,
    npo_weights,
    sequence_logp,
    valid_examples,
)
from jaxforget.objectives.shares import counts, labelled_count, share
from jaxforget.objectives.spec import Needs, ObjectiveSpec
from jaxforget.objectives.token import mean_logp

type Retain = Literal["none", "nll", "kl"]
type Part = tuple[Array, Metrics]

FORGET, RETAIN = "forget", "retain"


def gradient_ascent_objective() -> ObjectiveSpec:
    """Gradient ascent on the forget set: term `forget` = mean log-probability of its targets.

    Metrics: `forget_logp`, mean log-probability of an answer; `forget_tokens`.

    Source: Jang et al. 2022 (arXiv 2210.01504).
    """
    return _spec("none", {}, _forget_ascent, together=False)


def graddiff(retain: Literal["nll", "kl"] = "nll", *, together: bool = True) -> ObjectiveSpec:
    """Gradient difference: `forget` = mean log p on the forget set, `retain` holds the model.

    Args:
      retain: "nll": mean negative log-likelihood of the retain set's targets; "kl": mean
        KL(starting model || model) at them, which needs the starting model's hidden states.
      together: one forward pass over both roles, see `score_roles`.
    Raises:
      UserError: an unknown `retain`.

    Metrics: `forget_logp`, mean log-probability of an answer; `forget_tokens`, `retain_tokens`.

    Source: Liu et al. 2022 (arXiv 2203.12817); with "kl" Maini et al. 2024 (arXiv 2401.06121).
    """
    _check_retain(retain, ("nll", "kl"))
    return _spec(retain, {}, _forget_ascent, together=together)


def npo_objective(beta: float, retain: Retain = "nll", *, together: bool = True) -> ObjectiveSpec:
    """Negative preference optimisation, see `npo`; `retain` as in `graddiff`, or "none".

    Args:
      beta: inverse temperature > 0.
      retain: "none", "nll" or "kl".
      together: one forward pass over both roles, see `score_roles`.
    Raises:
      UserError: beta not above 0, or an unknown `retain`.

    Metrics: `forget_logp`, mean log-probability of an answer; `npo_weight`, mean share of
    gradient ascent's pull that is left (1 at the start); `forget_tokens`, `retain_tokens`.

    Source: Zhang et al. 2024 (arXiv 2404.05868), eq. 3.
    """
    check_beta(beta)
    _check_retain(retain, get_args(Retain.__value__))

    def forget(scores: Scores, reference: Reference) -> Part:
        start = _reference(reference, FORGET)
        if start.logp.shape != scores.logp.shape:
            raise UserError(
                f"npo: the reference has slots {start.logp.shape}, the scores "
                f"{scores.logp.shape}; they must be made from the same packed batch"
            )
        ours, theirs = sequence_logp(scores), sequence_logp(scores, start.logp)
        valid, total = valid_examples(scores), counts(scores).examples
        weights = jax.lax.stop_gradient(npo_weights(ours, theirs, beta))
        metrics = {
            "forget_logp": jax.lax.stop_gradient(share(ours, valid, total)),
            "npo_weight": share(weights, valid, total),
        }
        return share(npo_losses(ours, theirs, beta), valid, total), metrics

    return _spec(retain, {FORGET: frozenset({"logp"})}, forget, together=together)


def _spec(
    retain: str, reference: Mapping[str, frozenset[str]], forget, *, together: bool
) -> ObjectiveSpec:
    """An objective of a forget term and, unless "none", a retain term."""
    roles = (FORGET,) if retain == "none" else (FORGET, RETAIN)
    needed = {**reference, RETAIN: frozenset({"hidden"})} if retain == "kl" else dict(reference)

    def objective(
        score: ScoreFn, params: Params, batches: Batches, cached: Reference
    ) -> tuple[Terms, Metrics]:
        scores = score_roles(score, params, batches, roles, together=together)
        terms, metrics = {}, {}
        terms[FORGET], metrics = forget(scores[FORGET], cached)
        if retain == "nll":
            terms[RETAIN] = -mean_logp(scores[RETAIN])
        elif retain == "kl":
            terms[RETAIN] = reference_kl(scores[RETAIN], _reference(cached, RETAIN))
        tokens = {f"{role}_tokens": labelled_count(scores[role]) for role in roles}
        return terms, {**metrics, **tokens}

    return ObjectiveSpec(objective, Needs(roles, needed), roles)


def _forget_ascent(scores: Scores, reference: Reference) -> Part:
    answers = share(sequence_logp(scores), valid_examples(scores), counts(scores).examples)
    return mean_logp(scores), {"forget_logp": jax.lax.stop_gradient(answers)}


def _reference(reference: Reference, role: str) -> ReferenceScores:
    if role not in reference:
        raise UserError(f"the objective needs reference scores of {role!r}: cache them first")
    return reference[role]


def _check_retain(retain: str, allowed: tuple[str, ...]) -> None:
    if retain not in allowed:
        raise UserError(f"retain: no such term {retain!r}. {did_you_mean(retain, allowed)}")
