"""RWKU: forgetting a real person, asked directly and with cunning, and what it costs elsewhere.

Source: Jin et al. 2024 (arXiv 2406.10890).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from jaxforget.data import rwku as files
from jaxforget.data.choices import Question
from jaxforget.data.records import Record
from jaxforget.data.sources import Source
from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics
from jaxforget.evals.choices import accuracies, choice_likelihoods, right_mass
from jaxforget.evals.membership import Rows, membership
from jaxforget.evals.part import Part
from jaxforget.evals.suites.suite import Judged, SuiteResult, numbers, result_of

MC1, MC2 = "truthful_mc1", "truthful_mc2"
_ANSWERED = (*files.FORGET, *files.NEIGHBOR, files.FACTUALITY)
_LONG = (files.REASONING, files.FLUENCY)
_CONCLUSION = re.compile(r"\banswer is:?\s+(.+?)\s*(?:\.(?:\s|$)|\n|$)", re.IGNORECASE)

type Name = Literal[
    "forget_level1",
    "forget_level2",
    "forget_level3",
    "neighbor_level1",
    "neighbor_level2",
    "forget_mia",
    "retain_mia",
    "retain_mmlu",
    "retain_bbh",
    "truthful",
    "triviaqa",
    "fluency",
]


@dataclass(frozen=True)
class RwkuSuite:
    """The RWKU suite.

    Attributes:
      suite: "rwku".
      folder: holds the sets as files of their names, such as `forget_level1.jsonl.gz`.
      sets: sets by name, beside those of the folder or in their place.
      only: sets that are used; None: all there are.
      subject: whom the rows must be about; None: everybody.
      shots: worked examples before a question of MMLU, at most those the file holds.
      max_new_tokens: longest answer; `max_long_tokens` of BIG-Bench Hard and of instructions.
      cloze, question, conclude: instructions before sentences with a gap, before questions, and
        between BIG-Bench Hard's worked examples and its question.
      batch_size: prompts generated at a time.
      limit: rows used of each set, after the choice of the subject; None: all.
    """

    suite: Literal["rwku"] = "rwku"
    folder: str | None = None
    sets: Mapping[Name, Source] = field(default_factory=dict)
    only: tuple[Name, ...] | None = None
    subject: str | None = None
    shots: Annotated[int, Ge(0)] = 5
    max_new_tokens: Annotated[int, Ge(1)] = 30
    max_long_tokens: Annotated[int, Ge(1)] = 256
    cloze: str = "Fill in the blank."
    question: str = "Answer briefly."
    conclude: str = "Reason in the same way, and end with: So the answer is"
    batch_size: Annotated[int, Ge(1)] = 32
    limit: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class RwkuData:
    """What the suite reads.

    Attributes:
      records: by set: questions with answers, plain texts, instructions.
      exams: "retain_mmlu", and TruthfulQA with one and with several right choices.
    """

    records: Mapping[str, Sequence[Record]]
    exams: Mapping[str, Sequence[Question]]


def read(settings: RwkuSuite) -> RwkuData:
    """The rows about the chosen person.

    Raises:
      UserError: no set, a set that is asked for but not there, a file that cannot be read, no row
        about the person, or one half of the membership sets.
    """
    sources = files.files_in(settings.folder) if settings.folder is not None else {}
    sources |= dict(settings.sets)
    if not sources:
        raise UserError("evaluate: names no set; give `folder` or `sets`")
    if settings.only is not None:
        if not settings.only:
            raise UserError("evaluate.only: names no set; leave it out to take all there are")
        missing = sorted(set(settings.only) - set(sources))
        if missing:
            raise UserError(f"evaluate.only: there is no set {', '.join(missing)}")
        sources = {name: sources[name] for name in settings.only}
    halves = {files.MEMBERS, files.OTHERS} & set(sources)
    if len(halves) == 1:
        raise UserError(f"evaluate: {files.MEMBERS} and {files.OTHERS} need each other")
    records: dict[str, list[Record]] = {}
    exams: dict[str, list[Question]] = {}
    for name, source in sources.items():
        label, placed = files.rows_about(source, settings.subject)
        placed = placed[: settings.limit]
        if name == files.GENERAL:
            exams[name] = files.examined(label, placed, settings.shots)
        elif name == files.TRUTHFULNESS:
            exams[MC1] = files.truths(label, placed, "mc1_targets")
            exams[MC2] = files.truths(label, placed, "mc2_targets")
        else:
            records[name] = _records(name, label, placed, settings)
    return RwkuData(records, exams)


def _records(name: str, label: str, placed: Any, settings: RwkuSuite) -> list[Record]:
    if name in (files.MEMBERS, files.OTHERS):
        return files.plain_texts(label, placed)
    if name == files.REASONING:
        return files.reasoned(label, placed, settings.conclude)
    if name == files.FACTUALITY:
        return files.trivia(label, placed, settings.question)
    if name == files.FLUENCY:
        return files.instructed(label, placed)
    level1 = name in (files.FORGET[0], files.NEIGHBOR[0])
    return files.asked(label, placed, settings.cloze if level1 else settings.question)


def evaluate(
    judged: Judged, data: RwkuData, settings: RwkuSuite, oracle: Rows | None = None
) -> SuiteResult:
    """Judge a model by RWKU's sets, as far as they are there.

    Args:
      judged: see `Judged`.
      data: see `read`.
      settings: see `RwkuSuite`.
      oracle: not used: nobody has a model that never read of a famous person.
    Returns:
      `forget_*_rouge` and `neighbor_*_rouge` (ROUGE-L recall of the answer's first line, words not
      stemmed) by level, their means `forget_rouge` and `neighbor_rouge`, level 3 by kind of attack
      too; `mia_*`, the forget set's texts against those to be kept, with their mean losses
      `forget_mia_nll` and `retain_mia_nll`; `utility_general` (MMLU by letters),
      `utility_reasoning` (exact match of the conclusion), `utility_truthfulness` (MC1; `_mc2`),
      `utility_factuality` (F1 of words; `_exact`), `utility_fluency` (bits).
    Raises:
      UserError: rows longer than `max_length`.
    """
    parts: list[Part] = []
    if files.MEMBERS in data.records:
        parts.append(_membership(judged, data.records))
    if files.GENERAL in data.exams:
        parts.append(_general(judged, data.exams[files.GENERAL]))
    if MC1 in data.exams:
        parts.append(_truthfulness(judged, data.exams))
    brief = {name: some for name, some in data.records.items() if name in _ANSWERED}
    long = {name: some for name, some in data.records.items() if name in _LONG}
    generations: list[dict[str, Any]] = []
    for some, longest in ((brief, settings.max_new_tokens), (long, settings.max_long_tokens)):
        if some:
            generations += judged.generated(some, longest, settings.batch_size)
    by_set: dict[str, list[str]] = {}
    for each in generations:
        by_set.setdefault(each["set"], []).append(each["answer"])
    for name, answers in by_set.items():
        parts.append(_answered(name, data.records[name], answers))
    parts += [_overall(kind, parts) for kind in (files.FORGET, files.NEIGHBOR)]
    return result_of(parts, generations)


def _membership(judged: Judged, records: Mapping[str, Sequence[Record]]) -> Part:
    sides = {name: records[name] for name in (files.MEMBERS, files.OTHERS)}
    scored = judged.scored(sides, alone=tuple(sides))
    found = membership(scored, members=files.MEMBERS, others=files.OTHERS)
    nll = {name: scored.nll[scored.answers[name].correct] for name in sides}
    rows = {
        name: {"row": numbers(sides[name]), "nll": nll[name], **found.rows[name]} for name in sides
    }
    return Part(
        means={f"{name}_nll": values for name, values in nll.items()},
        areas=found.areas,
        values={name: value for name, value in found.values.items() if value is not None},
        rows=rows,
    )


def _general(judged: Judged, questions: Sequence[Question]) -> Part:
    found = choice_likelihoods(judged, {files.GENERAL: questions}, letters=True)[files.GENERAL]
    hits = accuracies(found.logp, found.offsets, found.correct)
    row = [each.row for each in questions]
    return Part({"utility_general": hits}, rows={files.GENERAL: {"row": row, "correct": hits}})


def _truthfulness(judged: Judged, exams: Mapping[str, Sequence[Question]]) -> Part:
    found = choice_likelihoods(judged, {name: exams[name] for name in (MC1, MC2)})
    hits = accuracies(found[MC1].logp, found[MC1].offsets, found[MC1].correct)
    mass = right_mass(found[MC2].logp, found[MC2].offsets, found[MC2].correct)
    row = [each.row for each in exams[MC1]]
    means = {"utility_truthfulness": hits, "utility_truthfulness_mc2": mass}
    return Part(means, rows={files.TRUTHFULNESS: {"row": row, "correct": hits, "mc2": mass}})


def _answered(name: str, records: Sequence[Record], answers: Sequence[str]) -> Part:
    """What the generated answers of one set are worth."""
    row = numbers(records)
    if name == files.FLUENCY:
        entropy = metrics.generation_entropy(answers)
        return Part({"utility_fluency": entropy}, rows={name: {"row": row, "entropy": entropy}})
    if name == files.REASONING:
        right = metrics.exact_matches([[r.answer] for r in records], list(map(conclusion, answers)))
        return Part({"utility_reasoning": right}, rows={name: {"row": row, "correct": right}})
    first = [answer.split("\n")[0] for answer in answers]
    if name == files.FACTUALITY:
        wordings = [record.extra["answers"] for record in records]
        f1, exact = metrics.token_f1(wordings, first), metrics.exact_matches(wordings, first)
        means = {"utility_factuality": f1, "utility_factuality_exact": exact}
        return Part(means, rows={name: {"row": row, "f1": f1, "correct": exact}})
    overlap = metrics.rouge([record.answer for record in records], first, stem=False)
    recall = overlap["rougeL_recall"]
    means = {f"{name}_rouge": recall}
    if name == files.FORGET[-1]:
        kinds = np.asarray([files.attack_of(record) for record in records])
        means |= {f"{name}_{kind}_rouge": recall[kinds == kind] for kind in sorted(set(kinds))}
    return Part(means, rows={name: {"row": row, "rouge": recall}})


def conclusion(answer: str) -> str:
    """What a worked answer comes to: the words after the last "answer is", else all of it."""
    found = _CONCLUSION.findall(answer)
    return found[-1] if found else answer


def _overall(names: Sequence[str], parts: Sequence[Part]) -> Part:
    """Mean over the levels, each counting once, as the paper's tables have it."""
    means = [part.means[f"{name}_rouge"] for part in parts for name in names if _has(part, name)]
    if not means:
        return Part()
    kind = names[0].partition("_")[0]
    return Part(values={f"{kind}_rouge": float(np.mean([each.mean() for each in means]))})


def _has(part: Part, name: str) -> bool:
    return f"{name}_rouge" in part.means
