"""MUSE: verbatim and knowledge memorisation, privacy leakage and utility, on news or books.

Scalability and sustainability are several runs, or a run of several requests, judged by this suite:
see `jaxforget.studies.sequence`.

Source: Shi et al. 2024 (arXiv 2407.06460).
"""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource, Source, load_records
from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics
from jaxforget.evals.families import likelihoods, memorised
from jaxforget.evals.membership import Rows, membership
from jaxforget.evals.part import Part
from jaxforget.evals.suites.suite import VERBATIM, Judged, SuiteResult, numbers, result_of, spaced

VERBMEM = "verbmem"
MEMBERS, OTHERS, KEPT = "privleak_forget", "privleak_holdout", "privleak_retain"
QUESTIONS = {"forget_qa": "forget_qa_icl", "retain_qa": "retain_qa_icl"}
"""Sets of questions, and the examples that stand before them."""

PLACES: Mapping[str, tuple[str, str]] = {
    VERBMEM: ("verbmem", "forget"),
    "forget_qa": ("knowmem", "forget_qa"),
    "forget_qa_icl": ("knowmem", "forget_qa_icl"),
    "retain_qa": ("knowmem", "retain_qa"),
    "retain_qa_icl": ("knowmem", "retain_qa_icl"),
    MEMBERS: ("privleak", "forget"),
    OTHERS: ("privleak", "holdout"),
    KEPT: ("privleak", "retain"),
}
"""(configuration, split) of each set in the corpus, or (folder, file) where it is a folder."""

_COLUMNS: Mapping[str, Mapping[Any, str]] = {
    "verbmem": {"prompt": "prompt", "answer": "gt"},
    "knowmem": {},
    "privleak": {"text": "text"},
}


@dataclass(frozen=True)
class MuseSuite:
    """The MUSE suite.

    Attributes:
      suite: "muse".
      corpus: id of the data set, such as "muse-bench/MUSE-News", or a folder with
        `verbmem/forget.json`, `knowmem/forget_qa.json` and so on; None: only the sets named below.
      verbmem: beginnings of texts and how they go on.
      forget_qa, retain_qa: questions on what is to be forgotten and kept; `.._icl`: the examples
        that stand before each, the first `shots` of them.
      privleak_forget, privleak_holdout: texts that were learned, and of their kind that were not;
        privleak_retain: texts that were learned and are to be kept.
      oracle: results.json (or run directory) of a model trained without the forget set.
      shots: examples before a question.
      verbmem_tokens, knowmem_tokens: longest continuation and longest answer.
      batch_size: prompts generated at a time.
      limit: rows used of each set; None: all.
      peer_compat: words are stemmed in ROUGE, PrivLeak without an oracle is measured from 0.5, and
        the peer's faults in the other metrics.
    """

    suite: Literal["muse"] = "muse"
    corpus: str | None = None
    verbmem: Source | None = None
    forget_qa: Source | None = None
    forget_qa_icl: Source | None = None
    retain_qa: Source | None = None
    retain_qa_icl: Source | None = None
    privleak_forget: Source | None = None
    privleak_holdout: Source | None = None
    privleak_retain: Source | None = None
    oracle: str | None = None
    shots: Annotated[int, Ge(0)] = 10
    verbmem_tokens: Annotated[int, Ge(1)] = 128
    knowmem_tokens: Annotated[int, Ge(1)] = 32
    batch_size: Annotated[int, Ge(1)] = 16
    limit: Annotated[int, Ge(1)] | None = None
    peer_compat: bool = False


def read(settings: MuseSuite) -> dict[str, list[Record]]:
    """The records by set.

    Raises:
      UserError: no set, one that cannot be read, examples without questions, or one half of the
        membership sets.
    """
    sources = _corpus(settings.corpus) if settings.corpus is not None else {}
    for each in fields(settings):
        if each.name in PLACES and getattr(settings, each.name) is not None:
            sources[each.name] = _with_columns(each.name, getattr(settings, each.name))
    if not sources:
        raise UserError("evaluate: names no set; give `corpus`, or sets of their own")
    for asked, shown in QUESTIONS.items():
        if shown in sources and asked not in sources:
            raise UserError(f"evaluate.{shown}: there is no {asked} to stand before")
    if OTHERS in sources and MEMBERS not in sources or KEPT in sources and MEMBERS not in sources:
        raise UserError(f"evaluate: {OTHERS} and {KEPT} are compared with {MEMBERS}; name that too")
    if MEMBERS in sources and OTHERS not in sources:
        raise UserError(f"evaluate.{MEMBERS}: it is compared with {OTHERS}; name that too")
    sets = {name: load_records(source) for name, source in sources.items()}
    for name in (VERBMEM, *QUESTIONS, *QUESTIONS.values()):
        if not all(record.prompt for record in sets.get(name, ())):
            raise UserError(
                f"evaluate.{name}: {sets[name][0].source} holds plain text; name the columns of "
                "prompt and answer"
            )
    if VERBMEM in sets:
        sets[VERBMEM] = [spaced(record) for record in sets[VERBMEM]]
    return {
        name: records if name in QUESTIONS.values() else records[: settings.limit]
        for name, records in sets.items()
    }


def _corpus(corpus: str) -> dict[str, DataSource]:
    """Every set of a data set of the hub, or those that a folder holds."""
    folder = pathlib.Path(corpus).expanduser()
    if not folder.is_dir():
        if folder.exists() or corpus.count("/") != 1 or corpus.startswith((".", "~", "/")):
            raise UserError(f"evaluate.corpus: there is no folder {corpus}")
        return {
            name: DataSource(corpus, place, split, columns=_COLUMNS[place])
            for name, (place, split) in PLACES.items()
        }
    found = {}
    for name, (place, stem) in PLACES.items():
        files = [folder / place / f"{stem}{end}" for end in (".json", ".jsonl", ".jsonl.gz")]
        for file in filter(pathlib.Path.exists, files):
            found[name] = DataSource(str(file), columns=_COLUMNS[place])
    if not found:
        raise UserError(f"evaluate.corpus: {corpus} holds no verbmem/forget.json or the like")
    return found


def _with_columns(name: str, source: DataSource) -> DataSource:
    """A set's usual columns, where the configuration names none."""
    return source if source.columns else replace(source, columns=_COLUMNS[PLACES[name][0]])


def evaluate(
    judged: Judged,
    sets: Mapping[str, Sequence[Record]],
    settings: MuseSuite,
    oracle: Rows | None = None,
) -> SuiteResult:
    """Judge a model by MUSE's sets, as far as they are there.

    Texts stand as they are: the configured template is for questions of other suites.

    Args:
      judged: see `Judged`.
      sets: see `read`.
      settings: see `MuseSuite`.
      oracle: rows of the oracle by set, see `SuiteResult.rows`.
    Returns:
      `forget_verbmem` (ROUGE-L F1 of the continuation with the first `verbmem_tokens` of how the
      text goes on), `extraction_strength` and `exact_memorization` of the same; `forget_knowmem`
      and, the utility, `retain_knowmem`; `privleak` and `mia_*` of forget against holdout, and
      `retain_mia_*` of what is kept against it: that a model knows it is no fault.
    Raises:
      UserError: texts longer than `max_length`, or an oracle of other rows.
    """
    parts: list[Part] = []
    compat = settings.peer_compat
    alone = [name for name in (VERBMEM, MEMBERS, OTHERS, KEPT) if name in sets]
    if alone:
        sides = {name: sets[name] for name in alone}
        scored = judged.scored(sides, alone=alone, template=VERBATIM)
        for name in alone:
            parts.append(likelihoods(name, name, scored, peer_compat=compat))
        if VERBMEM in sets:
            parts.append(memorised(VERBMEM, scored, peer_compat=compat))
        how: dict[str, Any] = {"others": OTHERS, "peer_compat": compat}
        if MEMBERS in sets:
            parts.append(membership(scored, members=MEMBERS, oracle=oracle, **how))
        if KEPT in sets:
            parts.append(_areas("retain_", membership(scored, members=KEPT, **how)))
    generations: list[dict[str, Any]] = []
    if VERBMEM in sets:
        made = _made(judged, {VERBMEM: sets[VERBMEM]}, settings.verbmem_tokens, settings)
        generations += made
        parts.append(_verbmem(judged, made, settings))
    asked = {
        name: _with_examples(sets[name], sets.get(shown, ())[: settings.shots])
        for name, shown in QUESTIONS.items()
        if name in sets
    }
    if asked:
        made = _made(judged, asked, settings.knowmem_tokens, settings)
        generations += made
        parts += [_knowmem(name, asked[name], made, compat) for name in asked]
    return result_of(parts, generations)


def _made(
    judged: Judged, sets: Mapping[str, Sequence[Record]], longest: int, settings: MuseSuite
) -> list[dict[str, Any]]:
    return judged.generated(sets, longest, settings.batch_size, template=VERBATIM)


def _areas(prefix: str, part: Part) -> Part:
    """The areas alone, under other names."""
    return Part(areas={f"{prefix}{name}": sides for name, sides in part.areas.items()})


def _verbmem(judged: Judged, made: Sequence[Mapping[str, Any]], settings: MuseSuite) -> Part:
    tokenizer = judged.lm.tokenizer
    ids = tokenizer([each["truth"] for each in made], add_special_tokens=False)["input_ids"]
    truths = tokenizer.batch_decode([some[: settings.verbmem_tokens] for some in ids])
    answers = [each["answer"] for each in made]
    found = metrics.verbatim_memorization(truths, answers, peer_compat=settings.peer_compat)
    columns = {"row": [each["row"] for each in made], "verbmem": found}
    return Part({"forget_verbmem": found}, rows={VERBMEM: columns})


def _with_examples(records: Sequence[Record], shown: Sequence[Record]) -> list[Record]:
    """Questions with worked examples before them; the answer begins with a space."""
    before = "".join(f"Question: {each.prompt}\nAnswer: {each.answer}\n\n" for each in shown)
    return [
        replace(each, prompt=f"{before}Question: {each.prompt}\nAnswer:", answer=f" {each.answer}")
        for each in records
    ]


def _knowmem(
    name: str, records: Sequence[Record], made: Sequence[Mapping[str, Any]], peer_compat: bool
) -> Part:
    answers = [each["answer"] for each in made if each["set"] == name]
    truths = [each.answer.strip() for each in records]
    found: np.ndarray = metrics.knowledge_memorization(truths, answers, peer_compat=peer_compat)
    columns = {"row": numbers(records), "knowmem": found}
    return Part({f"{name.removesuffix('_qa')}_knowmem": found}, rows={name: columns})
