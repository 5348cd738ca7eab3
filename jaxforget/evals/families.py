"""Families of metrics over the answers of a set, of which suites are made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.evals import metrics
from jaxforget.evals.answers import Scored
from jaxforget.evals.gradient_norms import gradient_norms
from jaxforget.evals.membership import FORGET, HOLDOUT, Rows
from jaxforget.evals.part import Part


def likelihoods(
    name: str, short: str, scored: Scored, *, options: bool = False, peer_compat: bool = False
) -> Part:
    """Probability, perplexity and, where there are wrong answers, truth ratios of one set.

    Args:
      name: of the set; where it is "forget", truth ratios are judged by closeness to 1.
      short: begins the metrics' names.
      scored: see `score_answers`.
      options: the answers are to be chosen from: `_prob` is normalised over them.
      peer_compat: the peer's guards, see the metrics.
    """
    answers = scored.answers[name]
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
    if options:
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


def memorised(
    name: str,
    scored: Scored,
    *,
    prefix: str = "",
    counted: bool = True,
    peer_compat: bool = False,
) -> Part:
    """Extraction strength and exact memorisation of one set.

    Args:
      name: of the set.
      scored: see `score_answers`.
      prefix: begins the metrics' names.
      counted: are these metrics, or only columns of the examples?
      peer_compat: the last target is left out whatever it is, and the peer's floor.
    """
    columns, offsets = scored.columns(name)
    ended = True if peer_compat else scored.ended[scored.answers[name].correct]
    found = {
        "extraction_strength": metrics.extraction_strength(
            columns["hit"], offsets, ended=ended, peer_compat=peer_compat
        ),
        "exact_memorization": metrics.exact_memorization(columns["hit"], offsets, ended=ended),
    }
    means = {f"{prefix}{key}": values for key, values in found.items()} if counted else {}
    return Part(means, rows={name: found})


def norms_of_both(
    lm: Any,
    params: Params,
    sets: Mapping[str, Sequence[Record]],
    template: Template,
    max_length: int,
    counted: Callable[[str, int, int], None],
    *,
    peer_compat: bool = False,
) -> dict[str, np.ndarray]:
    """Gradient norms `[n]` of the answers to forget and of the holdout set's, by set."""
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


def forget_quality(rows: Rows, oracle: Rows | None) -> Part:
    """Can the truth ratios of the forget set be told from the oracle's?

    Args:
      rows: of this model by set.
      oracle: the oracle's, or None.
    Raises:
      UserError: an oracle that was evaluated on other rows of the forget set.
    """
    mine, theirs = rows.get(FORGET, {}), (oracle or {}).get(FORGET)
    why = None
    if "truth_ratio" not in mine:
        why = "the forget set has no perturbed answers"
    elif theirs is None:
        why = "no oracle was given (evaluate.oracle)"
    elif "truth_ratio" not in theirs:
        why = "the oracle was evaluated without perturbed answers"
    if why is not None or theirs is None:
        return Part(values={"forget_quality": None}, reasons={"forget_quality": why or ""})
    if list(theirs["row"]) != list(mine["row"]):
        raise UserError(
            "evaluate.oracle: it was evaluated on other rows of the forget set than this model"
        )
    ours = np.asarray(mine["truth_ratio"])
    quality = metrics.forget_quality(ours, np.asarray(theirs["truth_ratio"]))
    return Part(values={"forget_quality": quality})
