"""The TOFU suite: one teacher-forced pass, one generation pass, every metric.

Sets: `forget`, `retain`, `real_authors`, `world_facts`; each record carries `perturbed_answer`
(a list) and, where the set has paraphrases, `paraphrased_answer`. With a `holdout` set, of the
forget set's kind and seen by no model, membership inference comes too.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.evals import metrics
from jaxforget.evals.answers import Scored, score_answers
from jaxforget.evals.generated import generate_answers, texts_of
from jaxforget.evals.gradient_norms import gradient_norms
from jaxforget.evals.membership import FORGET, HOLDOUT, Rows, membership
from jaxforget.evals.part import Part, joined

SHORT = {
    "forget": "forget",
    "retain": "retain",
    "real_authors": "ra",
    "world_facts": "wf",
    "holdout": "holdout",
}
"""Prefix of each set's metrics."""

COMPARED = ("row", "prob", "nll", "truth_ratio", "mia_min_k")
"""Columns of an oracle that other models are compared with."""

_OPTIONS = ("real_authors", "world_facts")  # multiple choice: probabilities among the options


@dataclass(frozen=True)
class TofuResult:
    """What the suite found.

    Attributes:
      metrics: by name; None where one could not be computed.
      reasons: for each None, why.
      intervals: (low, high) of 95 % bootstrap intervals, of those that examples make.
      rows: by set, one list a column with a value an example: "row", "tokens" (targets), "nll",
        "prob", "exact_memorization", "extraction_strength"; where there is one "truth_ratio",
        "rouge", and in forget and holdout the scores of every attack, "mia_loss" and so on.
      generations: dicts with "set", "row", "prompt", "truth", "answer".
    """

    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str]
    intervals: Mapping[str, tuple[float, float]]
    rows: Mapping[str, Mapping[str, list[float]]]
    generations: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain values for results.json; of the columns those that models are compared by."""
        rows = {
            name: {key: column for key, column in columns.items() if key in (*COMPARED, "rouge")}
            for name, columns in self.rows.items()
        }
        intervals = {name: list(bounds) for name, bounds in self.intervals.items()}
        about = {"reasons": dict(self.reasons), "intervals": intervals, "rows": rows}
        return {
            "metrics": dict(self.metrics),
            "evaluation": about,
            "generations": list(self.generations),
        }

    def examples(self) -> Iterator[dict[str, Any]]:
        """Every example of every set with all its values, and its answer where one was made."""
        answers = {(each["set"], each["row"]): each for each in self.generations}
        for name, columns in self.rows.items():
            for values in zip(*columns.values(), strict=True):
                example = {"set": name, **dict(zip(columns, values, strict=True))}
                yield example | dict(answers.get((name, example["row"]), {}))


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
) -> TofuResult:
    """Score a model on TOFU's sets, or on one's own in the same schema.

    Args:
      lm: a `LanguageModel`: `.score`, `.generate`, `.tokenizer`, `.eos_ids` are used.
      params: of the model.
      sets: by name; some of `SHORT`'s names.
      template: how a question and an answer become text.
      max_length: most tokens of one example.
      oracle: rows of the oracle by set, see `TofuResult.rows`; `COMPARED` are read.
      generate: also generate answers, and judge them: ROUGE, refusals, gibberish.
      max_new_tokens: longest generated answer.
      batch_size: prompts generated at a time.
      utility_over: "all": model_utility needs all nine parts; "available": those there are.
      with_gradient_norms: also that attack: a backward pass for every example of forget and
        holdout.
      peer_compat: the peer's faults, see the metrics: guards of 1e-10, the floor of extraction
        strength, the last target left out whatever it is, gradient norms averaged over tensors.
      counted: told (what, done, total).
    Raises:
      UserError: unknown or empty sets, wrong columns, an oracle of other rows.
    """
    refuse_sets(sets.keys(), with_gradient_norms=with_gradient_norms)
    for name, records in sets.items():
        if not records:
            raise UserError(f"evaluate.{name}: the set is empty")
    scored = score_answers(
        lm, params, sets, template, max_length, alone=(HOLDOUT,), counted=counted
    )
    parts = [_likelihoods(name, scored, peer_compat) for name in sets]
    parts += [_memorisation(name, scored, peer_compat) for name in sets]
    if HOLDOUT in sets:
        norms = None
        if with_gradient_norms:
            norms = _norms(lm, params, sets, template, max_length, peer_compat, counted)
        parts.append(membership(scored, oracle=oracle, norms=norms, peer_compat=peer_compat))
    asked = {name: records for name, records in sets.items() if name != HOLDOUT}
    generations: list[dict[str, Any]] = []
    if generate:
        generations = generate_answers(
            lm, params, asked, template, max_length, max_new_tokens, batch_size, counted
        )
        parts += [texts_of(name, SHORT[name], generations) for name in asked]
    parts.append(_forget_quality(joined(parts).rows, oracle))
    parts.append(_model_utility(joined(parts).metrics(), utility_over))
    whole = joined(parts)
    rows = {
        name: {key: np.asarray(column).tolist() for key, column in columns.items()}
        for name, columns in whole.rows.items()
    }
    return TofuResult(whole.metrics(), whole.reasons, whole.intervals(), rows, generations)


def _likelihoods(name: str, scored: Scored, peer_compat: bool) -> Part:
    short, answers = SHORT[name], scored.answers[name]
    count, correct = len(answers.records), scored.nll[answers.correct]
    prob = metrics.probability(correct)
    rows: dict[str, Any] = {
        "row": [record.row for record in answers.records],
        "tokens": np.diff(scored.columns(name)[1]),
        "nll": correct,
        "prob": prob,
    }
    means, values = {f"{short}_prob": prob}, {}
    logp = scored.columns(name)[0]["logp"]
    values[f"{short}_perplexity"] = metrics.perplexity(logp)
    if answers.perturbed is None:
        return Part(means, values=values, rows={name: rows})
    wrong, owner = scored.nll[answers.perturbed], answers.perturbed_owner
    assert owner is not None
    wrong_nll = _per_owner(wrong, owner, count)
    if name in _OPTIONS:
        wrong_prob = np.bincount(owner, np.exp(-wrong), count)
        means[f"{short}_raw_prob"] = prob
        means[f"{short}_prob"] = metrics.option_probability(
            prob, wrong_prob, peer_compat=peer_compat
        )
    judged = correct
    if answers.paraphrased is not None and answers.paraphrase_owner is not None:
        judged = _per_owner(scored.nll[answers.paraphrased], answers.paraphrase_owner, count)
        means[f"{short}_paraphrase_prob"] = metrics.probability(judged)
    ratios = metrics.truth_ratio(judged, wrong_nll, peer_compat=peer_compat)
    paper = metrics.paper_truth_ratio(judged, wrong, owner)
    rows |= {"truth_ratio": ratios, "paper_truth_ratio": paper}
    means[f"{short}_truth_ratio"] = _aggregated(name, ratios, peer_compat)
    means[f"{short}_paper_truth_ratio"] = _aggregated(name, paper, False)
    values[f"{short}_truth_probability"] = metrics.probability_mean(
        judged, wrong_nll, peer_compat=peer_compat
    )
    return Part(means, values=values, rows={name: rows})


def _aggregated(name: str, ratios: np.ndarray, peer_compat: bool) -> np.ndarray:
    """What a set's mean is taken of: ignorance of what is to be forgotten, else truthfulness."""
    if name == FORGET:
        return metrics.closeness(ratios, peer_compat=peer_compat)
    return np.maximum(0, 1 - ratios)


def _per_owner(values: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """Mean of the values that belong to each record."""
    return np.bincount(owner, values, count) / np.bincount(owner, minlength=count)


def _memorisation(name: str, scored: Scored, peer_compat: bool) -> Part:
    columns, offsets = scored.columns(name)
    ended = True if peer_compat else scored.ended[scored.answers[name].correct]
    found = {
        "extraction_strength": metrics.extraction_strength(
            columns["hit"], offsets, ended=ended, peer_compat=peer_compat
        ),
        "exact_memorization": metrics.exact_memorization(columns["hit"], offsets, ended=ended),
    }
    return Part(found if name == FORGET else {}, rows={name: found})


def _norms(
    lm: Any,
    params: Params,
    sets: Mapping[str, Sequence[Record]],
    template: Template,
    max_length: int,
    peer_compat: bool,
    counted: Callable[[str, int, int], None],
) -> dict[str, np.ndarray]:
    """Gradient norms of the answers to forget and of the holdout set's."""
    names = (FORGET, HOLDOUT)
    together = [record for name in names for record in sets[name]]
    found = gradient_norms(
        lm.score,
        params,
        tokenise(together, lm.tokenizer, template, max_length=max_length),
        peer_compat=peer_compat,
        counted=lambda done, total: counted("gradient norms", done, total),
    )
    return dict(zip(names, np.split(found, [len(sets[FORGET])]), strict=True))


def _forget_quality(rows: Rows, oracle: Rows | None) -> Part:
    mine, theirs = rows.get(FORGET, {}), (oracle or {}).get(FORGET)
    why = None
    if "truth_ratio" not in mine:
        why = "the forget set has no perturbed answers"
    elif theirs is None:
        why = "no oracle was given (evaluate.oracle)"
    if why is not None or theirs is None:
        return Part(values={"forget_quality": None}, reasons={"forget_quality": why or ""})
    if list(theirs["row"]) != list(mine["row"]):
        raise UserError(
            "evaluate.oracle: it was evaluated on other rows of the forget set than this model"
        )
    ours = np.asarray(mine["truth_ratio"])
    quality = metrics.forget_quality(ours, np.asarray(theirs["truth_ratio"]))
    return Part(values={"forget_quality": quality})


def _model_utility(values: Mapping[str, float | None], over: str) -> Part:
    parts = {name: values.get(name) for name in metrics.UTILITY_PARTS}
    there = {name: value for name, value in parts.items() if value is not None}
    missing = [name for name in parts if name not in there]
    utility = None
    if there and (not missing or over == "available"):
        utility = metrics.harmonic_mean(there)
    reasons = {"model_utility": f"missing parts: {', '.join(missing)}"} if missing else {}
    return Part(values={"model_utility": utility}, reasons=reasons)
