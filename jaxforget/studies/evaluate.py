"""`jaxforget evaluate`, and the evaluation that ends every training study."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from jaxforget.config import EvaluateConfig, SuiteConfig, suite_sources
from jaxforget.data.sources import load_records
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.engine.tree import Params
from jaxforget.evals import tofu
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.common import (
    SILENT,
    Events,
    Result,
    Stopwatch,
    config_digest,
    environment,
    load_model,
    opened,
    peak_bytes,
)


def evaluate(config: EvaluateConfig, events: Events = SILENT) -> Result:
    """Score a model without training it.

    Args:
      config: see `EvaluateConfig`.
      events: see `Events`.
    Raises:
      UserError: anything the user can mend.
    """
    with opened(config) as run:
        lm = load_model(config)
        events.stage("evaluating")
        watch = Stopwatch()
        found = run_suite(config.evaluate, lm, lm.params, config, run, events)
        results = {
            "method": "evaluate",
            "model": config.model,
            "throughput": {"peak_bytes": peak_bytes()},
            "seconds": watch.seconds(),
            **environment(),
            "config_sha256": config_digest(config),
            **found,
        }
        write_results(run, results)
        write_page(run)
        return Result(None, results["metrics"], run)


def run_suite(
    suite: SuiteConfig,
    lm: LanguageModel,
    params: Params,
    config: Any,
    run: RunDirectory,
    events: Events,
) -> dict[str, Any]:
    """The suite's part of results.json: metrics, per-example rows, generations, the oracle's.

    Args:
      suite: which sets and how.
      lm: the model; `params` its parameters to score.
      config: of the study, for `template` and `max_length`.
      run: the run directory, so that a run cannot be its own oracle.
      events: told how far it is.
    """
    sources = suite_sources(suite)
    if not sources:
        raise UserError(
            "evaluate: names no set. Allowed: forget, retain, real_authors, world_facts."
        )
    sets = {name: load_records(source)[: suite.limit] for name, source in sources.items()}
    oracle = None if suite.oracle is None else _load_oracle(suite.oracle, run)
    result = tofu.evaluate(
        lm,
        jax.device_put(params),
        sets,
        template=config.template,
        max_length=config.max_length,
        oracle=oracle["evaluation"]["rows"]["forget"] if oracle else None,
        generate=suite.generate,
        max_new_tokens=suite.max_new_tokens,
        batch_size=suite.batch_size,
        utility_over=suite.utility_over,
        peer_compat=suite.peer_compat,
        counted=events.counted,
    )
    found = result.to_json()
    return {**found, "oracle": oracle["metrics"]} if oracle else found


def _load_oracle(given: str, run: RunDirectory) -> Mapping[str, Any]:
    """Results of another run, checked to hold truth ratios of a forget set."""
    path = pathlib.Path(given)
    file = path / "results.json" if path.is_dir() else path
    if file.absolute() == run.results:
        raise UserError(f"evaluate.oracle: {given} is this very run")
    try:
        results = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"evaluate.oracle: {file}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"evaluate.oracle: {file} is damaged: {error}") from error
    try:
        forget = results["evaluation"]["rows"]["forget"]
        ratios, rows = forget["truth_ratio"], forget["row"]
    except (KeyError, TypeError):
        raise UserError(
            f"evaluate.oracle: {file} has no truth ratios of a forget set; evaluate the oracle "
            "with the same forget set first"
        ) from None
    if len(ratios) != len(rows):
        raise UserError(
            f"evaluate.oracle: {file} is damaged: {len(ratios)} ratios, {len(rows)} rows"
        )
    return results


def write_page(run: RunDirectory) -> None:
    """report.html of one run, by the first process."""
    if jax.process_index() == 0:
        from jaxforget.report import write_report

        write_report([run.path], run.report)
