"""`jaxforget continual`: a stream of tasks, what is learned of each and what is kept."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxforget import config as configs
from jaxforget import strategies
from jaxforget.config.stream import ContinualConfig
from jaxforget.data.order import order_of
from jaxforget.data.stream import TRAIN, joined
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.models.language_model import LanguageModel
from jaxforget.objectives.retain import nll_part
from jaxforget.studies.common import (
    SILENT,
    Events,
    Result,
    Stopwatch,
    config_digest,
    environment,
    opened,
)
from jaxforget.studies.recovery import recovered_nll
from jaxforget.studies.starting import finished_run, refuse_unread, starting_model
from jaxforget.studies.streams.measures import probe_measure, row_measure
from jaxforget.studies.streams.ordering import ordered, scores_of
from jaxforget.studies.streams.results import check_effects, compare, effects_of, results_of
from jaxforget.studies.streams.stream import Stream, Task
from jaxforget.studies.streams.texts import Read, Texts, read, texts_of
from jaxforget.studies.streams.training import train_stream

PER_RUN = (
    "strategy",
    "memory",
    "mixture",
    "packing",
    "average",
    "order",
    "optimizer",
    "optimizer_reset",
    "schedule",
    "views",
    "train",
    "lora",
    "model",
    "scratch",
    "measure",
)
"""Keys that `runs` may set."""


def continual(
    config: ContinualConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Train on a stream of tasks, once or once for every entry of `runs`.

    Args:
      config: a `ContinualConfig`, the same as a nested mapping, or the path of its YAML file.
      events: see `Events`.
    Returns:
      `Result` of the only run; of several the metrics by run, without parameters.
    Raises:
      UserError: anything the user can mend; nothing already written is harmed.
    """
    config = configs.resolve(ContinualConfig, config)
    refuse_unread(config.train, "continual")
    if not config.runs:
        return _one(config, events)
    check_effects(config)
    members = {label: _member(config, label) for label in config.runs}
    if config.reference is not None and config.reference not in members:
        hint = did_you_mean(config.reference, members)
        raise UserError(f"reference: there is no run {config.reference!r}. {hint}")
    with opened(config) as run:
        found = {}
        for label, member in members.items():
            told = dataclasses.replace(
                events, stage=lambda text, label=label: events.stage(f"{label}: {text}")
            )
            found[label] = dict(_one(member, told).metrics)
        if config.reference is not None:
            compare(found, config.reference)
        results = {
            "method": "continual",
            "metrics": {
                f"{label}/{k}": v
                for label, row in found.items()
                for k, v in row.items()
                if not isinstance(v, (list, dict))
            },
            "runs": found,
            "effects": effects_of(found, config.effects),
            **environment(),
            "config_sha256": config_digest(config),
        }
        write_results(run, results)
        _page(run, list(members))
        return Result(None, found, run)


def _member(config: ContinualConfig, label: str) -> ContinualConfig:
    """The configuration of one of several runs."""
    tree, given = configs.as_tree(config), config.runs[label]
    if not label or "/" in label or label in ("tasks", "cache"):
        raise UserError(f"runs: {label!r} cannot be the name of a folder")
    for key in given:
        if key.split(".")[0] not in PER_RUN:
            raise UserError(f"runs.{label}.{key}: {did_you_mean(key, PER_RUN)}")
    tree |= {"runs": {}, "effects": {}, "reference": None, "run_dir": f"{config.run_dir}/{label}"}
    return configs.build(ContinualConfig, configs.overridden(tree, given), f"runs.{label}")


def _one(config: ContinualConfig, events: Events) -> Result:
    strategy = strategies.from_config(config.strategy)
    strategy = dataclasses.replace(strategy, own=nll_part(TRAIN, config.average))
    with opened(config) as run:
        finished = finished_run(run, config)
        if finished is not None:
            return finished
        watch = Stopwatch()
        events.stage("reading data")
        records = read(config)
        lm = starting_model(config, records.trained)
        texts = texts_of(records, lm, config, run)
        ranked = _ranked(config, lm, records, texts, run, events)
        order = order_of(config.order, texts.train, lm.config.vocab_size, config.train.seed)
        stream = _stream(config, strategy, lm, texts, order, ranked, run)
        events.stage(f"training ({strategy.name})")
        streamed = train_stream(stream, watch.seconds, events.progress)
        events.stage("exporting the model")
        after = dataclasses.replace(lm, params=streamed.params)
        on_first(lambda: after.save_pretrained(run.model, dtype=config.export_dtype))
        recovered = None
        if config.measure.recovery is not None and len(stream.tasks) > 1:
            events.stage("training again on earlier tasks")
            sets = [(texts.train[place], texts.held[place]) for place in order]
            recovered = recovered_nll(after, sets[:-1], config, stream.mesh)
        results = results_of(config, stream, streamed, order, recovered)
        write_results(run, results)
        _page(run, [])
        return Result(streamed.params, results["metrics"], run)


def _ranked(
    config: ContinualConfig,
    lm: LanguageModel,
    records: Read,
    texts: Texts,
    run: RunDirectory,
    events: Events,
) -> list[np.ndarray]:
    """Of each task the examples to train on, in order, as places in its own set."""
    found = []
    for place, task in enumerate(config.stream):
        train = texts.train[place]
        own = np.arange(len(train))
        if task.order is not None:
            events.stage(f"scoring examples of {task.name}")
            scores = scores_of(place, lm, records.train[place], train, config, run)
            own = ordered(task.order, scores)
        found.append(own)
    return found


def _stream(
    config: ContinualConfig,
    strategy: strategies.Strategy,
    lm: LanguageModel,
    texts: Texts,
    order: Sequence[int],
    ranked: Sequence[np.ndarray],
    run: RunDirectory,
) -> Stream:
    sets = [texts.train[place] for place in order]
    whole, starts = joined(sets), np.cumsum([0, *map(len, sets[:-1])])
    ids = [first + ranked[place] for first, place in zip(starts, order, strict=True)]
    kept = [texts.held[place] for place in order]
    mesh = meshes.make_mesh(config.mesh)
    rows = meshes.whole_rows(config.measure.batch_size, mesh)
    return Stream(
        config,
        lm,
        whole,
        _tasks(config, strategy, order, ids),
        strategy,
        run,
        mesh,
        row_measure(lm, kept, rows, mesh, texts.also),
        probe_measure(lm, kept, config.measure.probe, mesh),
    )


def _tasks(
    config: ContinualConfig,
    strategy: strategies.Strategy,
    order: Sequence[int],
    ids: Sequence[np.ndarray],
) -> list[Task]:
    """What the strategy trains on in turn, from the examples of each task in order."""
    own = [config.stream[place] for place in order]
    steps = [_steps(config, place, len(i)) for place, i in zip(order, ids, strict=True)]
    if strategy.data == "joint":
        return [Task("all", np.concatenate(ids), sum(steps))]
    found = []
    for task, (about, some, count) in enumerate(zip(own, ids, steps, strict=True)):
        if strategy.data == "cumulative":
            found.append(Task(about.name, np.concatenate(ids[: task + 1]), count))
        else:
            shuffled = about.order is None or about.order.kind == "shuffled"
            found.append(Task(about.name, some, count, shuffled))
    return found


def _steps(config: ContinualConfig, place: int, examples: int) -> int:
    settings = config.train
    own = config.stream[place].steps or settings.steps
    return own or max(1, math.ceil(settings.epochs * examples / settings.batch_size))


def _page(run: RunDirectory, labels: Sequence[str]) -> None:
    if jax.process_index() == 0:
        from jaxforget.report.continual import write_continual

        folders = [run.path / label for label in labels] or [run.path]
        results = {
            label: json.loads((folder / "results.json").read_text())
            for label, folder in zip(labels or [run.path.name], folders, strict=True)
        }
        effects = json.loads(run.results.read_text()).get("effects")
        title = f"Continual study {run.path.name}"
        write_continual(results, run.report, title=title, effects=effects)


def table_of(run: RunDirectory) -> list[dict[str, Any]]:
    """A row a run of a finished study of several, for the terminal; none of a single one."""
    found = json.loads(run.results.read_text()).get("runs", {})
    names = ("mean_nll", "learned_nll", "backward_transfer", "forgetting", "min_score")
    return [{"run": label, **{n: row.get(n) for n in names}} for label, row in found.items()]
