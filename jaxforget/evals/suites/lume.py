"""LUME: documents to complete and questions to answer, membership, and one score of all.

Source: Ramakrishna et al. 2025, LUME (arXiv 2502.15097) and SemEval-2025 task 4 (arXiv 2504.02883),
whose score this is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from jaxforget.data.choices import ChoiceSource, Question, load_questions
from jaxforget.data.lume import COMPLETION, QUESTION, LumeSource, Prompts, load_prompts
from jaxforget.data.records import Record
from jaxforget.data.sources import Source, load_records
from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics
from jaxforget.evals.choices import choice_likelihoods, letter_part
from jaxforget.evals.membership import FORGET, HOLDOUT, Rows, membership
from jaxforget.evals.part import Part, joined
from jaxforget.evals.suites.suite import VERBATIM, Judged, SuiteResult, numbers, result_of, spaced

RETAIN = "retain"
SCORES = {COMPLETION: "regurgitation", QUESTION: "knowledge"}
MEMBERS, OTHERS, EXAM = "members", "nonmembers", "mmlu"


@dataclass(frozen=True)
class LumeSuite:
    """The LUME suite.

    Attributes:
      forget, retain: documents and questions, see `LumeData`.
      suite: "lume".
      members, nonmembers: texts that were learned and are to be forgotten, and of their kind that
        were not.
      mmlu: questions with choices, whose letters are scored.
      max_new_tokens: longest continuation and longest answer.
      batch_size: prompts generated at a time.
      limit: rows used of each set; None: all.
    """

    forget: LumeSource
    retain: LumeSource
    suite: Literal["lume"] = "lume"
    members: Source | None = None
    nonmembers: Source | None = None
    mmlu: ChoiceSource | None = None
    max_new_tokens: Annotated[int, Ge(1)] = 256
    batch_size: Annotated[int, Ge(1)] = 32
    limit: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class LumeSets:
    """What the suite reads.

    Attributes:
      prompts: of "forget" and "retain".
      texts: "forget" and "holdout", for membership; empty where there are none.
      exam: questions with choices; empty where there are none.
    """

    prompts: Mapping[str, Prompts]
    texts: Mapping[str, Sequence[Record]]
    exam: Sequence[Question]


def read(settings: LumeSuite) -> LumeSets:
    """The documents and questions.

    Raises:
      UserError: a set that cannot be read, or one half of the membership sets.
    """
    if (settings.members is None) != (settings.nonmembers is None):
        raise UserError(f"evaluate: {MEMBERS} and {OTHERS} need each other")
    prompts = {
        name: _first(load_prompts(getattr(settings, name)), settings.limit)
        for name in (FORGET, RETAIN)
    }
    texts = {}
    if settings.members is not None and settings.nonmembers is not None:
        for name, source in ((FORGET, settings.members), (HOLDOUT, settings.nonmembers)):
            texts[name] = load_records(source)[: settings.limit]
    exam = load_questions(settings.mmlu)[: settings.limit] if settings.mmlu else []
    return LumeSets(prompts, texts, exam)


def _first(prompts: Prompts, limit: int | None) -> Prompts:
    records = {kind: some[:limit] for kind, some in prompts.records.items()}
    return Prompts(records, {kind: some[:limit] for kind, some in prompts.tasks.items()})


def evaluate(
    judged: Judged, data: LumeSets, settings: LumeSuite, oracle: Rows | None = None
) -> SuiteResult:
    """Judge a model by what it completes and what it answers.

    Documents stand as they are, and questions as the configured template has them.

    Args:
      judged: see `Judged`.
      data: see `read`.
      settings: see `LumeSuite`.
      oracle: rows of the oracle by set, for `mia_reference_auc` and `privleak`.
    Returns:
      `forget_regurgitation` and `retain_regurgitation` (ROUGE-L recall of how documents go on),
      `forget_knowledge` and `retain_knowledge` (the same words as the answer, but for capitals and
      outer space), each also by task where there are several; `mia_*`; `mmlu_*`. `task_aggregate`
      is the harmonic mean of all scores by task, 1 - score for forget; `mia_score`
      1 - 2 |AUC of the loss - 0.5|; `aggregate` the mean of these two and `mmlu_accuracy_letter`.
    Raises:
      UserError: prompts longer than `max_length`, or an oracle of other rows.
    """
    parts: list[Part] = []
    generations: list[dict[str, Any]] = []
    for kind, score in SCORES.items():
        template = VERBATIM if kind == COMPLETION else judged.template
        sets = {
            f"{name}_{kind}": [
                spaced(each) if template.kind == "none" else each for each in prompts.records[kind]
            ]
            for name, prompts in data.prompts.items()
            if kind in prompts.records
        }
        if not sets:
            continue
        size = settings.batch_size
        made = judged.generated(sets, settings.max_new_tokens, size, template=template)
        generations += made
        for name, prompts in data.prompts.items():
            if kind in prompts.records:
                mine = [each["answer"] for each in made if each["set"] == f"{name}_{kind}"]
                parts.append(_scored(name, kind, score, prompts, mine))
    aggregated = _by_task(parts)
    if data.texts:
        scored = judged.scored(data.texts, alone=tuple(data.texts), template=VERBATIM)
        found = membership(scored, oracle=oracle)
        parts.append(replace(found, rows=_with_rows(found, data.texts, scored)))
    if data.exam:
        exam = choice_likelihoods(judged, {EXAM: data.exam}, letters=True)[EXAM]
        parts.append(letter_part(EXAM, data.exam, exam))
    parts.append(_aggregate(joined(parts).metrics(), aggregated))
    return result_of(parts, generations)


def _scored(name: str, kind: str, score: str, prompts: Prompts, answers: Sequence[str]) -> Part:
    """Scores of one kind of one set, together and by task."""
    records, tasks = prompts.records[kind], np.asarray(prompts.tasks[kind])
    truths = [record.answer.strip() for record in records]
    if kind == COMPLETION:
        values = metrics.rouge(truths, answers)["rougeL_recall"]
    else:
        pairs = zip(truths, answers, strict=True)
        values = np.asarray([float(a.lower() == b.strip().lower()) for a, b in pairs])
    means = {f"{name}_{score}": values}
    for task in sorted(set(prompts.tasks[kind]) - {"all"}):
        means[f"{name}_{task}_{score}"] = values[tasks == task]
    columns: dict[str, Any] = {"row": numbers(records), "task": tasks, score: values}
    return Part(means, rows={f"{name}_{kind}": columns})


def _by_task(parts: Sequence[Part]) -> dict[str, float]:
    """What the aggregate is made of: every score of every task, higher better."""
    found = {}
    for part in parts:
        apart = list(part.means.items())[1:] or list(part.means.items())
        for name, values in apart:
            mean = float(values.mean())
            found[name] = 1 - mean if name.startswith(f"{FORGET}_") else mean
    return found


def _with_rows(found: Part, texts: Mapping[str, Sequence[Record]], scored: Any) -> dict[str, Any]:
    return {
        name: {
            "row": numbers(records),
            "nll": scored.nll[scored.answers[name].correct],
            **found.rows[name],
        }
        for name, records in texts.items()
    }


def _aggregate(values: Mapping[str, float | None], tasks: Mapping[str, float]) -> Part:
    found: dict[str, float | None] = {"task_aggregate": metrics.harmonic_mean(tasks)}
    area, exam = values.get("mia_loss_auc"), values.get(f"{EXAM}_accuracy_letter")
    reasons = {}
    found["mia_score"] = None if area is None else 1 - 2 * abs(area - 0.5)
    if area is None:
        reasons["mia_score"] = f"no sets evaluate.{MEMBERS} and evaluate.{OTHERS}"
    needed = {"mia_score": found["mia_score"], EXAM: exam}
    missing = [name for name, value in needed.items() if value is None]
    found["aggregate"] = None
    if area is not None and exam is not None:
        scores = [found["task_aggregate"], found["mia_score"], exam]
        found["aggregate"] = float(np.mean(np.asarray(scores, np.float64)))
    else:
        reasons["aggregate"] = f"missing parts: {', '.join(missing)}"
    return Part(values=found, reasons=reasons)
