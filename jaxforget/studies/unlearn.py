"""`jaxforget unlearn` and `finetune`: load, cache references, train, export, evaluate, report."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.combiners import weighted_sum
from jaxforget.config import FinetuneConfig, UnlearnConfig
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet, example_ids
from jaxforget.edits.influence import PENALTY, penalised
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel, load
from jaxforget.objectives import nll_objective
from jaxforget.studies.common import (
    SILENT,
    Events,
    Result,
    Stopwatch,
    config_digest,
    environment,
    load_model,
    load_set,
    opened,
    peak_bytes,
    tokens_of,
)
from jaxforget.studies.evaluate import read_suite, run_suite, write_page
from jaxforget.studies.new_token import grown, token_sets
from jaxforget.studies.own_text import with_own_text
from jaxforget.studies.requests import (
    Work,
    earlier_metrics,
    finished_request,
    fulfil,
    refuse_apart,
)
from jaxforget.studies.roles import read_roles, refuse_missing
from jaxforget.studies.training import Trained, refuse_early

log = logging.getLogger(__name__)

FINETUNE, NLL = "finetune", "nll"


def unlearn(
    config: UnlearnConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Make a model forget `config.forget` and keep `config.retain`.

    Args:
      config: an `UnlearnConfig`, the same as a nested mapping, or the path of its YAML file.
      events: see `Events`.
    Returns:
      See `Result`. The run directory holds the exported model under `model/`.
    Raises:
      UserError: anything the user can mend; nothing already written is harmed.
    """
    config = configs.resolve(UnlearnConfig, config)
    method = methods.from_config(config.method)
    with opened(config) as run:
        finished = _finished(run, config)
        if finished is not None:
            return finished
        refuse_missing(config, method)
        if config.evaluate is not None:
            read_suite(config.evaluate, run)
        lm, tokens = load_model(config), []
        if method.token is not None:
            lm, tokens = grown(lm, method.token, 1 + len(config.requests))
        events.stage("reading data")
        requests = [
            read_roles(dataclasses.replace(config, forget=source), method, lm, run)
            for source in (config.forget, *config.requests)
        ]
        if method.token is not None:
            more = token_sets(config, method.token, lm, tokens)
            requests = [{**sets, **own} for sets, own in zip(requests, more, strict=True)]
        refuse_apart(config, method, len(requests))
        if method.own_text is not None:
            refuse_early(lm, requests[0], config.train, config.optimizer, config.lora)
            requests = [with_own_text(config, method, lm, requests[0], run, events)]
        return _run(config, method, lm, requests, run, events)


def finetune(
    config: FinetuneConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Teach a model `config.data` by maximum likelihood; see `unlearn` for the rest."""
    config = configs.resolve(FinetuneConfig, config)
    method = finetune_method(config)
    (role,) = method.roles
    with opened(config) as run:
        finished = _finished(run, config)
        if finished is not None:
            return finished
        if config.evaluate is not None:
            read_suite(config.evaluate, run)
        refuse_apart(config, method, 1)
        lm = load_model(config)
        events.stage("reading data")
        parts = [load_set(source, lm, config, run) for source in config.data]
        records: list[Record] = [record for some, _ in parts for record in some]
        sets = {role: parts[0][1] if len(parts) == 1 else tokens_of(records, lm, config, run)}
        watched = None
        if config.record_updates is not None:
            _, rows = load_set(config.record_updates, lm, config, run)
            watched = frozenset(example_ids(rows).tolist())
        return _run(config, method, lm, [sets], run, events, watched)


def finetune_method(config: FinetuneConfig) -> Method:
    """What `finetune` minimises."""
    spec, weights = nll_objective(), {NLL: 1.0}
    if config.gradient_penalty:
        if config.train.accumulate > 1:
            raise UserError(
                "gradient_penalty: needs the whole batch at once; set train.accumulate=1"
            )
        spec, weights = penalised(spec, NLL), {**weights, PENALTY: config.gradient_penalty}
    return methods.from_parts(FINETUNE, spec, weighted_sum(weights))


def _run(
    config: UnlearnConfig | FinetuneConfig,
    method: Method,
    lm: LanguageModel,
    requests: Sequence[Mapping[str, TokenisedSet]],
    run: RunDirectory,
    events: Events,
    watched: frozenset[int] | None = None,
) -> Result:
    for sets in requests:
        refuse_early(lm, sets, config.train, config.optimizer, config.lora)
    work = Work(config, method, lm, requests, run, meshes.make_mesh(config.mesh), watched)
    start, results = lm, {}
    for index in range(len(requests)):
        before = finished_request(work, index) if index + 1 < len(requests) else None
        if before is not None:
            start = before
            continue
        start, results = _one(work, index, start, work.told(events, index))
    if len(requests) > 1:
        results["requests"] = [*earlier_metrics(work), results["metrics"]]
    on_first(lambda: _finish(run, results))
    return Result(start.params, results["metrics"], run)


def _one(
    work: Work, index: int, start: LanguageModel, events: Events
) -> tuple[LanguageModel, dict[str, Any]]:
    """(the model after a request, its results); the model is exported, and judged if asked."""
    config, place, watch = work.config, work.place(index), Stopwatch()
    last = index + 1 == len(work.requests)
    params, trained, edited = fulfil(work, index, start, events, watch)
    after = dataclasses.replace(work.lm, params=params)
    events.stage("exporting the model")
    dtype = config.export_dtype if last else config.dtype  # exact: the next one starts from it
    on_first(lambda: after.save_pretrained(place.model, dtype=dtype))
    results = _results(config, work.method, trained, watch.seconds())
    if trained is not None and trained.selected is not None:
        results["selected_step"] = trained.selected
    if edited:
        results["edit"] = {name: float(value) for name, value in edited.items()}
    if config.evaluate is not None:
        events.stage("evaluating")
        found = run_suite(config.evaluate, work.lm, params, config, work.run, events, place=place)
        results.update(found)
    if not last:
        on_first(lambda: write_results(place, results))
    return after, results


def _finish(run: RunDirectory, results: Mapping[str, Any]) -> None:
    run.report.unlink(missing_ok=True)  # an older one must not outlive its results
    if "evaluation" not in results:
        run.examples.unlink(missing_ok=True)
    write_results(run, results)
    write_page(run)


def _results(
    config: Any, method: Method, trained: Trained | None, seconds: float
) -> dict[str, Any]:
    return {
        "method": method.name,
        "model": config.model,
        "metrics": {},
        "throughput": {
            "tokens_per_second": trained.tokens_per_second if trained else None,
            "step_ms": trained.step_ms if trained else None,
            "steps": trained.steps if trained else 0,
            "step_bytes": trained.step_bytes if trained else None,
            "peak_bytes": peak_bytes(),
        },
        "seconds": trained.seconds if trained else seconds,
        **environment(),
        "config_sha256": config_digest(config),
    }


def _finished(run: RunDirectory, config: Any) -> Result | None:
    """The result of a run that already ended with this very configuration."""
    if not run.results.exists() or not run.model.exists():
        return None
    try:
        results = json.loads(run.results.read_text())
        digest, metrics = results["config_sha256"], dict(results["metrics"])
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s is damaged; making it again", run.results)
        return None
    if digest != config_digest(config):
        return None
    try:
        params = load(str(run.model)).params
    except UserError as error:
        log.warning("%s; making the export again", error)
        return None
    log.info("%s is already finished", run.path)
    on_first(lambda: run.report.exists() or write_page(run))
    return Result(params, metrics, run)
