"""`jaxforget unlearn` and `finetune`: load, cache references, train, export, evaluate, report."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import jax

from jaxforget import methods
from jaxforget.combiners import weighted_sum
from jaxforget.config import FinetuneConfig, UnlearnConfig
from jaxforget.data.records import Record, refuse_overlap
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel
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
)
from jaxforget.studies.evaluate import run_suite, write_page
from jaxforget.studies.reference import with_reference
from jaxforget.studies.training import Trained, train_model

log = logging.getLogger(__name__)

FINETUNE = "finetune"


def unlearn(config: UnlearnConfig, events: Events = SILENT) -> Result:
    """Make a model forget `config.forget` and keep `config.retain`.

    Args:
      config: see `UnlearnConfig`.
      events: see `Events`.
    Returns:
      See `Result`. The run directory holds the exported model under `model/`.
    Raises:
      UserError: anything the user can mend; nothing already written is harmed.
    """
    method = methods.from_config(config.method)
    with opened(config) as run:
        finished = _finished(run, config)
        if finished is not None:
            return finished
        lm = load_model(config)
        events.stage("reading data")
        sets, records = {}, {}
        for role in method.roles:
            source = getattr(config, role, None)
            if source is None:
                raise UserError(f"{role}: method {method.name!r} needs this data set; name a file")
            records[role], sets[role] = load_set(source, lm, config, run)
        if "retain" in records:
            refuse_overlap(records["forget"], records["retain"])
        return _run(config, method, lm, sets, run, events)


def finetune(config: FinetuneConfig, events: Events = SILENT) -> Result:
    """Teach a model `config.data` by maximum likelihood; see `unlearn` for the rest."""
    spec = nll_objective()
    method = methods.from_parts(FINETUNE, spec, weighted_sum({"nll": 1.0}))
    (role,) = method.roles
    with opened(config) as run:
        finished = _finished(run, config)
        if finished is not None:
            return finished
        lm = load_model(config)
        events.stage("reading data")
        parts = [load_set(source, lm, config, run) for source in config.data]
        records: list[Record] = [record for some, _ in parts for record in some]
        sets = {role: parts[0][1] if len(parts) == 1 else _joined(records, lm, config, run)}
        return _run(config, method, lm, sets, run, events)


def _joined(
    records: list[Record], lm: LanguageModel, config: Any, run: RunDirectory
) -> TokenisedSet:
    from jaxforget.data.tokenise import tokenise_cached

    return tokenise_cached(
        records, lm.tokenizer, config.template, max_length=config.max_length, cache_dir=run.cache
    )


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
    if any(method.reference.values()):
        events.stage("scoring with the starting model")
    referenced = with_reference(lm, sets, method.reference, folder=run.cache)
    events.stage(f"training ({method.name})")
    trained = train_model(
        lm,
        referenced,
        method,
        run=run,
        settings=config.train,
        optimizer=config.optimizer,
        lora=config.lora,
        mesh=mesh,
        listen=events.progress,
    )
    seconds = watch.seconds()
    params = merge_lora(to_host(trained.params))
    events.stage("exporting the model")
    if jax.process_index() == 0:
        lm.save_pretrained(run.model, params=params, dtype=config.export_dtype)
    results = _results(config, method, trained, seconds)
    if config.evaluate is not None:
        events.stage("evaluating")
        results.update(run_suite(config.evaluate, lm, params, config, run, events))
    write_results(run, results)
    write_page(run)
    return Result(params, results["metrics"], run)


def _results(config: Any, method: Method, trained: Trained, seconds: float) -> dict[str, Any]:
    return {
        "method": method.name,
        "model": config.model,
        "metrics": {},
        "throughput": {
            "tokens_per_second": trained.tokens_per_second,
            "step_ms": trained.step_ms,
            "steps": trained.steps,
            "peak_bytes": peak_bytes(),
        },
        "seconds": seconds,
        **environment(),
        "config_sha256": config_digest(config),
    }


def _finished(run: RunDirectory, config: Any) -> Result | None:
    """The result of a run that already ended with this very configuration."""
    if not run.results.exists() or not run.model.exists():
        return None
    try:
        results = json.loads(run.results.read_text())
    except (OSError, json.JSONDecodeError):
        log.warning("%s is damaged; making it again", run.results)
        return None
    if results.get("config_sha256") != config_digest(config):
        return None
    log.info("%s is already finished", run.path)
    from jaxforget.models.language_model import load

    return Result(load(str(run.model)).params, results["metrics"], run)
