"""The TOFU suite: one teacher-forced pass, one generation pass, every metric.

Sets: `forget`, `retain`, `real_authors`, `world_facts`; each record carries `perturbed_answer`
(a list) and, where the set has paraphrases, `paraphrased_answer`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxforget.data.records import Record, variants
from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids, tokenise
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.evals import metrics
from jaxforget.evals.rouge import rouge
from jaxforget.evals.teacher_forced import TokenTable, score_set

SHORT = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
"""Prefix of each set's metrics."""

_OPTIONS = ("real_authors", "world_facts")  # multiple choice: probabilities among the options


@dataclass(frozen=True)
class Answers:
    """Where the answers of one set lie among all scored examples.

    Attributes:
      records: the set.
      correct: indices of the answers, in order of the records.
      paraphrased: indices of the paraphrases, or None; `paraphrase_owner`: record of each.
      perturbed: indices of the wrong answers, or None; `perturbed_owner`: record of each.
    """

    records: Sequence[Record]
    correct: np.ndarray
    paraphrased: np.ndarray | None
    paraphrase_owner: np.ndarray
    perturbed: np.ndarray | None
    perturbed_owner: np.ndarray


@dataclass(frozen=True)
class TofuResult:
    """What the suite found.

    Attributes:
      metrics: by name; None where one could not be computed.
      reasons: for each None, why.
      rows: by set, per-example lists: "row", "prob", "truth_ratio" (where there is one), "rouge".
      generations: dicts with "set", "row", "prompt", "truth", "answer".
    """

    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str]
    rows: Mapping[str, Mapping[str, list[float]]]
    generations: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain values for results.json."""
        return {
            "metrics": dict(self.metrics),
            "evaluation": {"reasons": dict(self.reasons), "rows": dict(self.rows)},
            "generations": list(self.generations),
        }


def evaluate(
    lm: Any,
    params: Params,
    sets: Mapping[str, Sequence[Record]],
    *,
    template: Template,
    max_length: int = 512,
    oracle: Mapping[str, Any] | None = None,
    generate: bool = True,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    utility_over: Literal["all", "available"] = "all",
    peer_compat: bool = False,
    counted: Callable[[str, int, int], None] = lambda *_: None,
) -> TofuResult:
    """Score a model on TOFU's sets, or on one's own in the same schema.

    Args:
      lm: a `LanguageModel`: `.score`, `.generate`, `.tokenizer` are used.
      params: of the model.
      sets: by name; some of `SHORT`'s names, `forget` among them.
      template: how a question and an answer become text.
      max_length: most tokens of one example.
      oracle: "row" and "truth_ratio" of the oracle on the forget set, see `load_oracle`.
      generate: also generate answers and compute ROUGE.
      max_new_tokens: longest generated answer.
      batch_size: prompts generated at a time.
      utility_over: "all": model_utility needs all nine parts; "available": those there are.
      peer_compat: the peer's floor of extraction strength.
      counted: told (what, done, total).
    Raises:
      UserError: unknown or empty sets, wrong columns, an oracle of other rows.
    """
    for name, records in sets.items():
        if name not in SHORT:
            raise UserError(f"evaluate: no set {name!r}. Allowed: {', '.join(SHORT)}.")
        if not records:
            raise UserError(f"evaluate.{name}: the set is empty")
    table, placed = _score(lm, params, sets, template, max_length, counted)
    nll = metrics.mean_nll(table.logp, table.offsets)
    values: dict[str, float | None] = {}
    rows: dict[str, dict[str, list[float]]] = {}
    for name, answers in placed.items():
        some, rows[name] = _likelihoods(name, answers, nll)
        values.update(some)
    if "forget" in placed:
        values.update(_memorisation(table, placed["forget"], peer_compat))
    generations: list[dict[str, Any]] = []
    if generate:
        generations = _generate(
            lm, params, sets, template, max_length, max_new_tokens, batch_size, counted
        )
        values.update(_rouge(generations, rows))
    reasons: dict[str, str] = {}
    _forget_quality(values, rows, oracle, reasons)
    _model_utility(values, utility_over, reasons)
    return TofuResult(values, reasons, rows, generations)


def _score(
    lm: Any,
    params: Params,
    sets: Mapping[str, Sequence[Record]],
    template: Template,
    max_length: int,
    counted: Callable[[str, int, int], None],
) -> tuple[TokenTable, dict[str, Answers]]:
    """Every answer of every set in one pass."""
    together: list[Record] = []
    placed: dict[str, Answers] = {}

    def add(records: Sequence[Record]) -> np.ndarray:
        together.extend(records)
        return np.arange(len(together) - len(records), len(together))

    def add_variants(records: Sequence[Record], key: Any) -> tuple[np.ndarray | None, np.ndarray]:
        if not any(key in record.extra for record in records):
            return None, np.zeros(0, np.int64)
        expanded, owner = variants(records, key)
        return add(expanded), owner

    for name, records in sets.items():
        correct = add(records)
        paraphrased, paraphrase_owner = add_variants(records, "paraphrased_answer")
        perturbed, perturbed_owner = add_variants(records, "perturbed_answer")
        placed[name] = Answers(
            records, correct, paraphrased, paraphrase_owner, perturbed, perturbed_owner
        )
    tokenised = tokenise(together, lm.tokenizer, template, max_length=max_length)
    if len(tokenised) != len(together):
        raise UserError("evaluate: some rows are plain text longer than max_length; raise it")
    table = score_set(
        lm.score,
        params,
        tokenised,
        stats=True,
        counted=lambda done, total: counted("scoring", done, total),
    )
    return table, placed


def _per_owner(values: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """Mean of the values that belong to each record."""
    return np.bincount(owner, values, count) / np.bincount(owner, minlength=count)


def _likelihoods(
    name: str, answers: Answers, nll: np.ndarray
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    short, count = SHORT[name], len(answers.records)
    correct = nll[answers.correct]
    prob = metrics.probability(correct)
    rows = {"row": [record.row for record in answers.records], "prob": prob.tolist()}
    values: dict[str, float | None] = {f"{short}_prob": float(prob.mean())}
    if answers.perturbed is None:
        return values, rows
    wrong = nll[answers.perturbed]
    wrong_nll = _per_owner(wrong, answers.perturbed_owner, count)
    if name in _OPTIONS:
        wrong_prob = np.bincount(answers.perturbed_owner, np.exp(-wrong), count)
        values[f"{short}_raw_prob"] = values[f"{short}_prob"]
        values[f"{short}_prob"] = float(metrics.option_probability(prob, wrong_prob).mean())
    judged = correct
    if answers.paraphrased is not None:
        judged = _per_owner(nll[answers.paraphrased], answers.paraphrase_owner, count)
        values[f"{short}_paraphrase_prob"] = float(metrics.probability(judged).mean())
    ratios = metrics.truth_ratio(judged, wrong_nll)
    aggregate = metrics.closer_to_one if name == "forget" else metrics.true_better
    values[f"{short}_truth_ratio"] = aggregate(ratios)
    values[f"{short}_truth_probability"] = metrics.probability_mean(judged, wrong_nll)
    return values, {**rows, "truth_ratio": ratios.tolist()}


def _memorisation(table: TokenTable, answers: Answers, peer_compat: bool) -> dict[str, float]:
    count = len(answers.correct)
    offsets = table.offsets[answers.correct[0] : answers.correct[0] + count + 1]
    part = slice(int(offsets[0]), int(offsets[-1]))
    assert table.hit is not None
    hits, offsets = table.hit[part], offsets - offsets[0]
    strength = metrics.extraction_strength(hits, offsets, peer_compat=peer_compat)
    return {
        "extraction_strength": float(strength.mean()),
        "exact_memorization": float(metrics.exact_memorization(hits, offsets).mean()),
        "forget_perplexity": metrics.perplexity(table.logp[part]),
    }


def _generate(
    lm: Any,
    params: Params,
    sets: Mapping[str, Sequence[Record]],
    template: Template,
    max_length: int,
    max_new_tokens: int,
    batch_size: int,
    counted: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """One greedy answer to every question of every set."""
    asked = [(name, record) for name, records in sets.items() for record in records]
    prompts = prompt_ids([record for _, record in asked], lm.tokenizer, template, max_length)
    counted("generating", 0, len(asked))
    tokens = lm.generate(params, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    counted("generating", len(asked), len(asked))
    texts = lm.tokenizer.batch_decode(
        [list(map(int, ids)) for ids in tokens], skip_special_tokens=True
    )
    return [
        {
            "set": name,
            "row": record.row,
            "prompt": record.prompt,
            "truth": record.answer,
            "answer": text.strip(),
        }
        for (name, record), text in zip(asked, texts, strict=True)
    ]


def _rouge(
    generations: Sequence[Mapping[str, Any]], rows: dict[str, dict[str, list[float]]]
) -> dict[str, float]:
    values = {}
    for name in rows:
        mine = [each for each in generations if each["set"] == name]
        scores = rouge([each["truth"] for each in mine], [each["answer"] for each in mine])
        rows[name]["rouge"] = scores["rougeL_recall"].tolist()
        values[f"{SHORT[name]}_rouge"] = float(scores["rougeL_recall"].mean())
    return values


def _forget_quality(
    values: dict[str, float | None],
    rows: Mapping[str, Mapping[str, list[float]]],
    oracle: Mapping[str, Any] | None,
    reasons: dict[str, str],
) -> None:
    values["forget_quality"] = None
    mine = rows.get("forget", {})
    if "truth_ratio" not in mine:
        reasons["forget_quality"] = "the forget set has no perturbed answers"
    elif oracle is None:
        reasons["forget_quality"] = "no oracle was given (evaluate.oracle)"
    elif list(oracle["row"]) != list(mine["row"]):
        raise UserError(
            "evaluate.oracle: it was evaluated on other rows of the forget set than this model"
        )
    else:
        ours, theirs = np.asarray(mine["truth_ratio"]), np.asarray(oracle["truth_ratio"])
        values["forget_quality"] = metrics.forget_quality(ours, theirs)


def _model_utility(values: dict[str, float | None], over: str, reasons: dict[str, str]) -> None:
    parts = {name: values.get(name) for name in metrics.UTILITY_PARTS}
    there = {name: value for name, value in parts.items() if value is not None}
    missing = [name for name in parts if name not in there]
    values["model_utility"] = None
    if missing:
        reasons["model_utility"] = f"missing parts: {', '.join(missing)}"
    if there and (not missing or over == "available"):
        values["model_utility"] = metrics.harmonic_mean(there)
