"""The TOFU suite: one teacher-forced pass, one generation pass, every metric.

Sets: `forget`, `retain`, `real_authors`, `world_facts`; each record carries `perturbed_answer`
(a list) and, where the set has paraphrases, `paraphrased_answer`. With a `holdout` set, of the
forget set's kind and seen by no model, membership inference comes too.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.evals import metrics
from jaxforget.evals.answers import score_answers
from jaxforget.evals.families import forget_quality, likelihoods, memorised, norms_of_both
from jaxforget.evals.generated import generate_answers, texts_of
from jaxforget.evals.membership import FORGET, HOLDOUT, Rows, membership
from jaxforget.evals.part import Part, joined
from jaxforget.evals.suites.suite import SuiteResult, result_of

SHORT = {
    "forget": "forget",
    "retain": "retain",
    "real_authors": "ra",
    "world_facts": "wf",
    "holdout": "holdout",
}
"""Prefix of each set's metrics."""

_OPTIONS = ("real_authors", "world_facts")  # multiple choice: probabilities among the options


def refuse_sets(names: Collection[str], *, with_gradient_norms: bool = False) -> None:
    """Raise UserError where the sets of these names cannot be evaluated together."""
    for name in names:
        if name not in SHORT:
            raise UserError(f"evaluate: no set {name!r}. Allowed: {', '.join(SHORT)}.")
    if not names:
        raise UserError(f"evaluate: names no set. Allowed: {', '.join(SHORT)}.")
    if HOLDOUT in names and FORGET not in names:
        raise UserError("evaluate.holdout: it is compared with evaluate.forget; name that too")
    if with_gradient_norms and HOLDOUT not in names:
        raise UserError(
            "evaluate.gradient_norms: they are compared with those of evaluate.holdout; name it too"
        )


def evaluate(
    lm: Any,
    params: Params,
    sets: Mapping[str, Sequence[Record]],
    *,
    template: Template,
    max_length: int = 512,
    oracle: Rows | None = None,
    generate: bool = True,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    utility_over: Literal["all", "available"] = "all",
    with_gradient_norms: bool = False,
    peer_compat: bool = False,
    counted: Callable[[str, int, int], None] = lambda *_: None,
) -> SuiteResult:
    """Score a model on TOFU's sets, or on one's own in the same schema.

    Args:
      lm: a `LanguageModel`: `.score`, `.generate`, `.tokenizer`, `.eos_ids` are used.
      params: of the model.
      sets: by name; some of `SHORT`'s names.
      template: how a question and an answer become text.
      max_length: most tokens of one example.
      oracle: rows of the oracle by set, see `SuiteResult.rows`; `COMPARED` are read.
      generate: also generate answers, and judge them: ROUGE, refusals, gibberish.
      max_new_tokens: longest generated answer.
      batch_size: prompts generated at a time.
      utility_over: "all": model_utility needs all nine parts; "available": those there are.
      with_gradient_norms: also that attack: a backward pass for every example of forget and
        holdout.
      peer_compat: the peer's faults, see `Template` and the metrics: labels that begin where the
        prompt alone ends, guards of 1e-10, the floor of extraction strength, the last target left
        out whatever it is, gradient norms averaged over tensors; and tokens of a prompt that are
        also the padding, which is the end of text where there is no other, are not seen (when
        answers are scored, positions go on counting them).
      counted: told (what, done, total).
    Raises:
      UserError: unknown or empty sets, wrong columns, an oracle of other rows.
    """
    refuse_sets(sets.keys(), with_gradient_norms=with_gradient_norms)
    for name, records in sets.items():
        if not records:
            raise UserError(f"evaluate.{name}: the set is empty")
    parts: list[Part] = []
    unseen = _padding(lm.tokenizer) if peer_compat else None
    if peer_compat:
        template = replace(template, peer_compat=True)
    scored = score_answers(
        lm, params, sets, template, max_length, alone=(HOLDOUT,), unseen=unseen, counted=counted
    )
    for name in sets:
        parts.append(
            likelihoods(
                name, SHORT[name], scored, options=name in _OPTIONS, peer_compat=peer_compat
            )
        )
        parts.append(memorised(name, scored, counted=name == FORGET, peer_compat=peer_compat))
    if HOLDOUT in sets:
        norms = None
        if with_gradient_norms:
            norms = norms_of_both(
                lm, params, sets, template, max_length, counted, peer_compat=peer_compat
            )
        parts.append(membership(scored, oracle=oracle, norms=norms, peer_compat=peer_compat))
    asked = {name: records for name, records in sets.items() if name != HOLDOUT}
    generations: list[dict[str, Any]] = []
    if generate:
        generations = generate_answers(
            lm,
            params,
            asked,
            template,
            max_length,
            max_new_tokens,
            batch_size,
            counted,
            unseen,
            # tokens that prompts are not shown would have been counted, so it would tell of others
            scored=None if peer_compat else scored,
        )
        parts += [texts_of(name, SHORT[name], generations) for name in asked]
    parts.append(forget_quality(joined(parts).rows, oracle))
    parts.append(_model_utility(joined(parts).metrics(), utility_over))
    return result_of(parts, generations)


def _padding(tokenizer: Any) -> int | None:
    """What the peer pads with, and masks wherever it stands."""
    own = tokenizer.pad_token_id
    return tokenizer.eos_token_id if own is None else own


def _model_utility(values: Mapping[str, float | None], over: str) -> Part:
    parts = {name: values.get(name) for name in metrics.UTILITY_PARTS}
    there = {name: value for name, value in parts.items() if value is not None}
    missing = [name for name in parts if name not in there]
    utility = None
    if there and (not missing or over == "available"):
        utility = metrics.harmonic_mean(there)
    reasons = {"model_utility": f"missing parts: {', '.join(missing)}"} if missing else {}
    return Part(values={"model_utility": utility}, reasons=reasons)
