"""BLUR: what is to be forgotten and what is to be kept in one query, and texts to relearn from.

Source: Hu et al. 2025 (arXiv 2506.15699). Queries join two questions word for word; the paper's
keyword and semantic queries are further files of questions, which the suite "own" judges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from jaxforget.data.records import Record
from jaxforget.data.sources import Source, load_records
from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics
from jaxforget.evals.generated import texts_of
from jaxforget.evals.membership import FORGET, Rows
from jaxforget.evals.part import Part, joined
from jaxforget.evals.suites.suite import Judged, SuiteResult, examples_of, numbers, result_of

RETAIN = "retain"
SIDES = (FORGET, RETAIN)
ORDERS: Mapping[str, tuple[str, str]] = {
    "forget_first": (FORGET, RETAIN),
    "retain_first": (RETAIN, FORGET),
}
"""Sets of combined queries, and which question each asks first."""

TAKEN = (FORGET, RETAIN, "half", "holdout", "unrelated")
"""Names that sets to relearn from cannot have: the audit's own texts."""


@dataclass(frozen=True)
class BlurSuite:
    """The BLUR suite.

    Attributes:
      forget, retain: questions and answers; question i of the longer set meets question i of the
        shorter one, counted round.
      suite: "blur".
      relearn: texts to relearn from, from nearly to hardly related, by name: `jaxforget audit` of
        a run judged by this suite trains on each.
      base: run directory of the model before it forgot, judged by this suite with the same sets:
        answers are compared with its answers, as in the paper; None: with those of the files.
      between: stands between the two questions of a combined query.
      max_new_tokens: longest answer to one question; combined queries get twice as many.
      batch_size: prompts generated at a time.
      limit: rows used of each set; None: all.
    """

    forget: Source
    retain: Source
    suite: Literal["blur"] = "blur"
    relearn: Mapping[str, Source] = field(default_factory=dict)
    base: str | None = None
    between: str = " "
    max_new_tokens: Annotated[int, Ge(1)] = 64
    batch_size: Annotated[int, Ge(1)] = 32
    limit: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class BlurData:
    """What the suite reads.

    Attributes:
      sets: "forget" and "retain".
      truths: by set, the text that the answer to each question is compared with.
      relearn: sets to relearn from.
    """

    sets: Mapping[str, Sequence[Record]]
    truths: Mapping[str, Sequence[str]]
    relearn: Mapping[str, Sequence[Record]]


def read(settings: BlurSuite) -> BlurData:
    """The questions, what answers are compared with, and the sets to relearn from.

    Raises:
      UserError: a set that cannot be read or asks nothing, a name that is taken, or a base that
        did not answer these questions.
    """
    refuse_names(settings.relearn)
    sets = {name: load_records(getattr(settings, name))[: settings.limit] for name in SIDES}
    for name, records in sets.items():
        if not all(record.prompt for record in records):
            raise UserError(f"evaluate.{name}: {records[0].source} holds plain text, not questions")
    truths = {name: [each.answer for each in records] for name, records in sets.items()}
    if settings.base is not None:
        truths = _answers_of(settings.base, sets)
    relearn = {name: load_records(source) for name, source in settings.relearn.items()}
    return BlurData(sets, truths, relearn)


def refuse_names(names: Mapping[str, Any], where: str = "evaluate.relearn") -> None:
    """Raise UserError where a set to relearn from has a name of the audit's own, or no word."""
    for name in names:
        if name in TAKEN or not name.isidentifier():
            raise UserError(f"{where}: {name!r} must be one word, and none of {', '.join(TAKEN)}")


def _answers_of(base: str, sets: Mapping[str, Sequence[Record]]) -> dict[str, list[str]]:
    """Answers of the model before, from the examples of its run."""
    file, known = examples_of(base)
    found: dict[str, list[str]] = {}
    for name, records in sets.items():
        found[name] = []
        for record in records:
            row, where = known.get((name, record.row), ({}, file))
            if row.get("prompt") != record.prompt:
                raise UserError(
                    f"evaluate.base: {where} has no answer to row {record.row} of {record.source} "
                    f"in the {name} set; judge the base with this suite and the same sets first"
                )
            answer = row.get("answer")
            if not isinstance(answer, str) or not answer.strip():
                raise UserError(
                    f"evaluate.base: {where}: the base answered nothing, with which nothing can be "
                    "compared; leave out `base` to compare with the files' answers"
                )
            found[name].append(answer)
    return found


def paired(sets: Mapping[str, Sequence[Record]]) -> list[dict[str, int]]:
    """Which questions meet, as {"forget": i, "retain": j}; each at least once."""
    sizes = {name: len(sets[name]) for name in SIDES}
    return [
        {name: index % size for name, size in sizes.items()} for index in range(max(sizes.values()))
    ]


def combined(
    sets: Mapping[str, Sequence[Record]], pairs: Sequence[Mapping[str, int]], order: str, joint: str
) -> list[Record]:
    """Both questions of every pair as one; the answer is both answers."""
    found = []
    for index, pair in enumerate(pairs):
        parts = [sets[name][pair[name]] for name in ORDERS[order]]
        prompt, answer = joint.join(p.prompt for p in parts), "\n".join(p.answer for p in parts)
        found.append(Record(prompt, answer, index, parts[0].source))
    return found


def evaluate(
    judged: Judged, data: BlurData, settings: BlurSuite, oracle: Rows | None = None
) -> SuiteResult:
    """Judge a model by questions asked alone, and by both kinds in one query.

    Args:
      judged: see `Judged`.
      data: see `read`.
      settings: see `BlurSuite`.
      oracle: not used; `base` is what answers are compared with.
    Returns:
      `forget_rouge` and `retain_rouge` (ROUGE-L recall) of questions asked alone;
      `forget_first_*` and `retain_first_*` of both orders, each with `_forget_rouge` and
      `_retain_rouge` of the one answer's halves; `combined_forget_rouge` and
      `combined_retain_rouge`, their means; `forget_gap`, what combining brings back, and
      `retain_gap`, what it loses; the same with `_prob`, the probability of the file's answer; and
      the share of answers that are gibberish.
    Raises:
      UserError: queries longer than `max_length`.
    """
    pairs = paired(data.sets)
    asked = {order: combined(data.sets, pairs, order, settings.between) for order in ORDERS}
    size, longest = settings.batch_size, settings.max_new_tokens
    generations = judged.generated(data.sets, longest, size)
    generations += judged.generated(asked, 2 * longest, size)
    answers: dict[str, list[str]] = {}
    for each in generations:
        answers.setdefault(each["set"], []).append(each["answer"])
    nll = _losses(judged, data, asked, pairs)
    parts = [texts_of(name, name, generations) for name in (*SIDES, *ORDERS)]
    means: dict[str, np.ndarray] = {
        name: each for part in parts for name, each in part.means.items() if "gibberish" in name
    }
    rows: dict[str, dict[str, Any]] = {name: {"row": numbers(data.sets[name])} for name in SIDES}
    for name in SIDES:
        prob = metrics.probability(nll[name])
        rouge = metrics.rouge(data.truths[name], answers[name])["rougeL_recall"]
        rows[name] |= {"nll": nll[name], "prob": prob, "rouge": rouge}
        means |= {f"{name}_prob": prob, f"{name}_rouge": rouge}
    for order in ORDERS:
        rows[order] = {"row": numbers(asked[order])}
        for name in SIDES:
            truths = [data.truths[name][pair[name]] for pair in pairs]
            prob = metrics.probability(nll[f"{order}_{name}"])
            rouge = metrics.rouge(truths, answers[order])["rougeL_recall"]
            rows[order] |= {f"{name}_prob": prob, f"{name}_rouge": rouge}
            means |= {f"{order}_{name}_prob": prob, f"{order}_{name}_rouge": rouge}
    found = joined([Part(means, rows=rows), _compared(means, pairs)])
    return result_of([found], generations)


def _losses(
    judged: Judged,
    data: BlurData,
    asked: Mapping[str, Sequence[Record]],
    pairs: Sequence[Mapping[str, int]],
) -> dict[str, np.ndarray]:
    """Mean loss of every answer after its question alone, and after both orders of both."""
    sets = dict(data.sets)
    for order, queries in asked.items():
        for name in SIDES:
            sets[f"{order}_{name}"] = [
                replace(query, answer=data.sets[name][pair[name]].answer)
                for query, pair in zip(queries, pairs, strict=True)
            ]
    scored = judged.scored(sets, alone=tuple(sets))
    return {name: scored.nll[scored.answers[name].correct] for name in sets}


def _compared(means: Mapping[str, np.ndarray], pairs: Sequence[Mapping[str, int]]) -> Part:
    """Means of both orders, and how far they are from the same questions asked alone."""
    found = {}
    for name in SIDES:
        for kind in ("rouge", "prob"):
            both = np.mean([means[f"{order}_{name}_{kind}"] for order in ORDERS], axis=0)
            alone = means[f"{name}_{kind}"][[pair[name] for pair in pairs]]
            gap = f"{name}_gap" if kind == "rouge" else f"{name}_gap_{kind}"
            found[f"combined_{name}_{kind}"] = both
            found[gap] = both - alone if name == FORGET else alone - both
    return Part(found)
