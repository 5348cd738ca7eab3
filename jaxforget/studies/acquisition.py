"""`jaxforget acquire`: facts injected into training, how much of them is gained and kept."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget import config as configs
from jaxforget.config.acquire import AcquireConfig
from jaxforget.data.facts import Fact, facts_of, probes_of
from jaxforget.data.injection import InjectedBatches, Schedule, schedule_of
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet, check_vocabulary
from jaxforget.data.sources import load_records
from jaxforget.data.stream import chosen, joined
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.files import write_atomically
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.models.language_model import LanguageModel
from jaxforget.models.lora import merge_lora
from jaxforget.studies.acquired import analyse, curve_rows
from jaxforget.studies.common import (
    SILENT,
    Events,
    Result,
    Stopwatch,
    config_digest,
    environment,
    longest,
    peak_bytes,
    to_host,
)
from jaxforget.studies.common import opened as opened_run
from jaxforget.studies.injected import Subject, read_looks, train_injected
from jaxforget.studies.primed import categories_of
from jaxforget.studies.starting import finished_run, refuse_unread, starting_model
from jaxforget.studies.training import Trained

_TEXT = Template(kind="none", end=True)
_PROBE = Template(kind="none", end=False)


def acquire(
    config: AcquireConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Train on a corpus into which facts are injected, and probe them at every look.

    A killed run goes on from its last checkpoint (`train.save_every`).

    Args:
      config: an `AcquireConfig`, the same as a nested mapping, or the path of its YAML file.
      events: see `Events`.
    Raises:
      UserError: anything the user can mend; nothing already written is harmed.
    """
    config = configs.resolve(AcquireConfig, config)
    _check(config)
    with opened_run(config) as run:
        finished = finished_run(run, config)
        if finished is not None:
            return finished
        watch = Stopwatch()
        events.stage("reading data")
        subject = _subject(config, run)
        events.stage("training")
        trained = train_injected(subject, watch.seconds, events.progress)
        events.stage("exporting the model")
        params = merge_lora(to_host(trained.params))
        after = dataclasses.replace(subject.lm, params=params)
        on_first(lambda: after.save_pretrained(run.model, dtype=config.export_dtype))
        events.stage("reading the curves")
        results = _results(subject, trained)
        write_results(run, results)
        on_first(lambda: _write(run, results))
        return Result(params, results["metrics"], run)


def _check(config: AcquireConfig) -> None:
    refuse_unread(config.train, "acquire")
    look, injection = config.look, config.injection
    for key in ("every", "apart") if config.probes else ():
        if getattr(injection, key) % look.every:
            raise UserError(f"look.every: {look.every} does not divide injection.{key}")
    if config.probes and injection.times > 1 and look.window > injection.every:
        raise UserError(
            f"look.window: {look.window} updates reach beyond the next presentation of the same "
            f"text, injection.every={injection.every} later"
        )
    if not config.probes and config.recall is None:
        raise UserError("acquire: nothing is measured; set probes, recall or both")
    for key in ("memory", "priming") if config.priming is not None else ():
        kind = getattr(config.priming, key)
        if kind not in config.probes:
            raise UserError(f"priming.{key}: {did_you_mean(kind, config.probes)}")
    if config.recall is not None and "never" not in injection.modes:
        raise UserError("recall: recognition needs texts of the mode 'never' as foils")


def _subject(config: AcquireConfig, run: RunDirectory) -> Subject:
    injection = config.injection
    records = load_records(config.facts)
    wanted = sum(injection.modes.values())
    if len(records) < wanted:
        raise UserError(
            f"injection.modes: {wanted} texts, but {config.facts.path} has {len(records)}"
        )
    records = records[:wanted]
    base = [record for source in config.base for record in load_records(source)]
    lm = starting_model(config, base)
    length = longest(config, lm)
    schedule = schedule_of(
        injection.modes,
        start=injection.start,
        every=injection.every,
        times=injection.times,
        per_step=injection.per_step,
        apart=injection.apart,
        seed=config.train.seed,
    )
    texts, pieces = _wordings(facts_of(records, config.paraphrases), schedule, lm, length)
    corpus = _tokens(base, lm, _TEXT, length)
    size = config.train.batch_size
    batches = InjectedBatches(corpus, texts, pieces, schedule, size, length, config.train.seed)
    mesh = meshes.make_mesh(config.mesh)
    parts = meshes.row_shards(mesh) * config.train.accumulate
    if size % parts:
        raise UserError(f"train.batch_size: {size} rows cannot be divided into {parts} parts")
    steps = config.train.steps or max(1, math.ceil(config.train.epochs * batches.rows / size))
    if schedule.end > steps:
        raise UserError(
            f"train.steps: {steps} updates end before the last presentation, in update "
            f"{schedule.end - 1}"
        )
    probes = probes_of(records, config.probes, config.joiner)
    scored = [_tokens([probe.record for probe in probes], lm, _PROBE, length)] if probes else []
    beginnings = []
    if config.recall is not None:
        first, beginnings = _beginnings(records, lm, min(config.recall.max_tokens, length))
        scored.append(first)
    kinds = [] if config.priming is None else categories_of(records, config.priming)
    return Subject(config, lm, batches, probes, joined(scored), beginnings, steps, run, mesh, kinds)


def _tokens(
    records: Sequence[Record], lm: LanguageModel, template: Template, length: int
) -> TokenisedSet:
    found = tokenise(records, lm.tokenizer, template, max_length=length)
    check_vocabulary(found, lm.config.vocab_size)
    return found


def _wordings(
    facts: Sequence[Fact], schedule: Schedule, lm: LanguageModel, length: int
) -> tuple[TokenisedSet, list[list[np.ndarray]]]:
    """Pieces of every text and its wordings, and which they are of each."""
    records, numbers = [], []
    for fact, mode in zip(facts, schedule.modes, strict=True):
        if mode == "paraphrased" and not fact.paraphrases:
            raise UserError(
                f"{fact.source}, row {fact.row}: it is to be paraphrased but has no other wording; "
                "set `paraphrases` to their column, or choose other rows"
            )
        wordings = (fact.text, *(fact.paraphrases if mode == "paraphrased" else ()))
        numbers.append(np.arange(len(records), len(records) + len(wordings)))
        records += [
            Record("", text, number, fact.source)
            for number, text in enumerate(wordings, len(records))
        ]
    found = _tokens(records, lm, _TEXT, length)
    return found, [[np.flatnonzero(found.rows == n) for n in own] for own in numbers]


def _beginnings(
    records: Sequence[Record], lm: LanguageModel, most: int
) -> tuple[TokenisedSet, list[np.ndarray]]:
    """The first tokens of every text, to score and as ids."""
    numbered = [Record("", r.answer, number, r.source) for number, r in enumerate(records)]
    found = _tokens(numbered, lm, _PROBE, most)
    _, first = np.unique(found.rows, return_index=True)
    found = chosen(found, first)
    cuts = found.offsets
    ids = [
        np.append(found.tokens[a:b], found.targets[b - 1])
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    return found, ids


def _results(subject: Subject, trained: Trained) -> dict[str, Any]:
    config = subject.config
    found = analyse(
        read_looks(subject.run),
        subject.schedule,
        subject.probes,
        config.look,
        list(config.probes),
        None if config.priming is None else (config.priming, subject.categories),
    )
    return {
        "method": "acquire",
        "model": config.model or "scratch",
        **found,
        "throughput": {
            "tokens_per_second": trained.tokens_per_second,
            "step_ms": trained.step_ms,
            "steps": trained.steps,
            "step_bytes": trained.step_bytes,
            "peak_bytes": peak_bytes(),
        },
        "seconds": trained.seconds,
        **environment(),
        "config_sha256": config_digest(config),
    }


def _write(run: RunDirectory, results: Mapping[str, Any]) -> None:
    from jaxforget.report.acquisition import write_acquisition

    write_atomically(run.path / "curves.csv", curve_rows(results))
    write_acquisition(results, run.report, title=f"Factual acquisition {run.path.name}")
