"""`jaxforget unlearn` and `finetune`: load, cache references, train, export, evaluate, report."""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.combiners import weighted_sum
from jaxforget.config import FinetuneConfig, UnlearnConfig
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.processes import first_before_others, on_first
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.engine.types import Metrics
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel, load
from jaxforget.models.lora import merge_lora
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
    to_host,
    tokens_of,
)
from jaxforget.studies.edit import edit_model
from jaxforget.studies.evaluate import read_suite, run_suite, write_page
from jaxforget.studies.reference import with_reference
from jaxforget.studies.roles import read_roles, refuse_missing
from jaxforget.studies.training import Trained, refuse_early, train_model

log = logging.getLogger(__name__)

FINETUNE = "finetune"


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
        lm = load_model(config)
        events.stage("reading data")
        sets = read_roles(config, method, lm, run)
        return _run(config, method, lm, sets, run, events)


def finetune(
    config: FinetuneConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Teach a model `config.data` by maximum likelihood; see `unlearn` for the rest."""
    config = configs.resolve(FinetuneConfig, config)
    spec = nll_objective()
    method = methods.from_parts(FINETUNE, spec, weighted_sum({"nll": 1.0}))
    (role,) = method.roles
    with opened(config) as run:
        finished = _finished(run, config)
        if finished is not None:
            return finished
        if config.evaluate is not None:
            read_suite(config.evaluate, run)
        lm = load_model(config)
        events.stage("reading data")
        parts = [load_set(source, lm, config, run) for source in config.data]
        records: list[Record] = [record for some, _ in parts for record in some]
        sets = {role: parts[0][1] if len(parts) == 1 else tokens_of(records, lm, config, run)}
        return _run(config, method, lm, sets, run, events)


def _run(
    config: UnlearnConfig | FinetuneConfig,
    method: Method,
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    run: RunDirectory,
    events: Events,
) -> Result:
    watch = Stopwatch()
    mesh = meshes.make_mesh(config.mesh)
    _refuse_lora(config, method)
    refuse_early(lm, sets, config.train, config.optimizer, config.lora)
    trained, params = None, lm.params
    if method.objective is not None:
        trained = _train(config, method, lm, sets, run, events, mesh, watch)
        params = merge_lora(to_host(trained.params))
    edited: Metrics = {}
    if method.edit is not None:
        events.stage(f"editing the weights ({method.name})")
        params, edited = edit_model(lm, params, sets, method.edit, config.train, mesh)
    events.stage("exporting the model")
    on_first(lambda: lm.save_pretrained(run.model, params=params, dtype=config.export_dtype))
    results = _results(config, method, trained, watch.seconds())
    if edited:
        results["edit"] = {name: float(value) for name, value in edited.items()}
    if config.evaluate is not None:
        events.stage("evaluating")
        results.update(run_suite(config.evaluate, lm, params, config, run, events))
    on_first(lambda: _finish(run, results))
    return Result(params, results["metrics"], run)


def _refuse_lora(config: UnlearnConfig | FinetuneConfig, method: Method) -> None:
    if config.lora is not None and method.weights_only:
        raise UserError(f"lora: {method.name} takes none: {method.weights_only}")


def _train(
    config: UnlearnConfig | FinetuneConfig,
    method: Method,
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    run: RunDirectory,
    events: Events,
    mesh: Mesh,
    watch: Stopwatch,
) -> Trained:
    if any(method.reference.values()):
        events.stage("scoring with the starting model")
    with first_before_others():
        referenced = with_reference(
            lm, sets, method.needs, folder=run.cache, seed=config.train.seed
        )
    events.stage(f"training ({method.name})")
    return train_model(
        lm,
        referenced,
        method,
        run=run,
        settings=config.train,
        optimizer=config.optimizer,
        lora=config.lora,
        mesh=mesh,
        clock=watch.seconds,
        listen=events.progress,
    )


def _finish(run: RunDirectory, results: Mapping[str, Any]) -> None:
    run.report.unlink(missing_ok=True)  # an older one must not outlive its results
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
