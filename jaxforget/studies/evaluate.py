"""`jaxforget evaluate`, and the evaluation that ends every training study."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxforget import config as configs
from jaxforget.config import EvaluateConfig, Suite, SuiteConfig, suite_sources
from jaxforget.data.records import Record, variants
from jaxforget.data.sources import load_records
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically
from jaxforget.engine.mesh import make_mesh, put, shardings
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.engine.tree import Params
from jaxforget.evals import tofu
from jaxforget.evals.suites.suite import Judged, SuiteResult
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.common import (
    SILENT,
    Events,
    Result,
    Stopwatch,
    config_digest,
    environment,
    load_model,
    longest,
    opened,
    peak_bytes,
)
from jaxforget.studies.suites import READERS


def evaluate(
    config: EvaluateConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Score a model without training it.

    Args:
      config: an `EvaluateConfig`, the same as a nested mapping, or the path of its YAML file.
      events: see `Events`.
    Raises:
      UserError: anything the user can mend.
    """
    config = configs.resolve(EvaluateConfig, config)
    with opened(config) as run:
        read_suite(config.evaluate, run)
        lm = load_model(config)
        events.stage("evaluating")
        watch = Stopwatch()
        found = run_suite(config.evaluate, lm, lm.params, config, run, events, place=run)
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


def read_suite(suite: Suite, run: RunDirectory) -> tuple[Any, Mapping[str, Any] | None]:
    """The suite's data (for TOFU records by set), and the oracle's results where one is named.

    Every study calls it before it computes anything, so that hours of training do not end in a
    misspelt file name.

    Raises:
      UserError: no set, a set that cannot be read, or an oracle that cannot be compared.
    """
    if not isinstance(suite, SuiteConfig):
        data = READERS[type(suite)].read(suite)
        named = getattr(suite, "oracle", None)
        return data, None if named is None else _evaluated(named, run)
    sources = suite_sources(suite)
    tofu.refuse_sets(sources.keys(), with_gradient_norms=suite.gradient_norms)
    sets = {name: load_records(source)[: suite.limit] for name, source in sources.items()}
    for records in sets.values():
        for key in ("perturbed_answer", "paraphrased_answer"):
            if any(key in record.extra for record in records):
                variants(records, key)
    if suite.oracle is None:
        return sets, None
    oracle = _load_oracle(suite.oracle, run)
    _check_comparable(sets.get("forget", []), oracle)
    return sets, oracle


def _check_comparable(forget: Sequence[Record], oracle: Mapping[str, Any]) -> None:
    if not any("perturbed_answer" in record.extra for record in forget):
        raise UserError(
            "evaluate.oracle: nothing to compare with it; evaluate.forget must be a set with a "
            "column perturbed_answer"
        )
    if [record.row for record in forget] != oracle["evaluation"]["rows"]["forget"]["row"]:
        raise UserError(
            "evaluate.oracle: it was evaluated on other rows of the forget set than "
            f"{forget[0].source} and evaluate.limit name here"
        )


def run_suite(
    suite: Suite,
    lm: LanguageModel,
    params: Params,
    config: Any,
    run: RunDirectory,
    events: Events,
    *,
    place: RunDirectory | None = None,
) -> dict[str, Any]:
    """The suite's part of results.json: metrics, per-example rows, generations, the oracle's.

    Args:
      suite: which sets and how.
      lm: the model; `params` its parameters to score.
      config: of the study, for `template`, `max_length` and `mesh`.
      run: the run directory, so that a run cannot be its own oracle.
      events: told how far it is.
      place: where examples.jsonl is written; None: nowhere.
    """
    data, oracle = read_suite(suite, run)
    theirs = oracle["evaluation"]["rows"] if oracle else None
    mesh = make_mesh(config.mesh)
    placed = put(params, shardings(params, mesh)) if mesh.size > 1 else jax.device_put(params)
    if isinstance(suite, SuiteConfig):
        result = _tofu(suite, lm, placed, config, data, theirs, events)
    else:
        judged = Judged(lm, placed, config.template, longest(config, lm), events.counted)
        result = READERS[type(suite)].evaluate(judged, data, suite, theirs)
    found = result.to_json()
    for name, value in found["metrics"].items():
        if value is not None and not math.isfinite(value):  # JSON has no infinity
            found["metrics"][name] = None
            found["evaluation"]["reasons"][name] = f"it is {value}"
    if place is not None:
        lines = "".join(json.dumps(example) + "\n" for example in result.examples())
        on_first(lambda: write_atomically(place.examples, lines))
    return {**found, "oracle": oracle["metrics"]} if oracle else found


def _tofu(
    suite: SuiteConfig,
    lm: LanguageModel,
    params: Params,
    config: Any,
    sets: Mapping[str, Sequence[Record]],
    oracle: Mapping[str, Any] | None,
    events: Events,
) -> SuiteResult:
    return tofu.evaluate(
        lm,
        params,
        sets,
        template=config.template,
        max_length=longest(config, lm),
        oracle=oracle,
        generate=suite.generate,
        max_new_tokens=suite.max_new_tokens,
        batch_size=suite.batch_size,
        utility_over=suite.utility_over,
        with_gradient_norms=suite.gradient_norms,
        peer_compat=suite.peer_compat,
        counted=events.counted,
    )


def _results_file(given: str) -> pathlib.Path:
    path = pathlib.Path(given)
    return path / "results.json" if path.is_dir() else path


def _read_results(given: str, run: RunDirectory) -> Any:
    """What another run wrote."""
    file = _results_file(given)
    if file.absolute() == run.results:
        raise UserError(f"evaluate.oracle: {given} is this very run")
    try:
        return json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"evaluate.oracle: {file}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"evaluate.oracle: {file} is damaged: {error}") from error


def _evaluated(given: str, run: RunDirectory) -> Mapping[str, Any]:
    """Results of another run, checked to hold an evaluation."""
    results = _read_results(given, run)
    try:
        found = isinstance(results["evaluation"]["rows"], dict)
    except (KeyError, TypeError):
        found = False
    if not found:
        raise UserError(f"evaluate.oracle: {_results_file(given)} holds no evaluation")
    return results


def _load_oracle(given: str, run: RunDirectory) -> Mapping[str, Any]:
    """Results of another run, checked to hold truth ratios of a forget set."""
    results, file = _read_results(given, run), _results_file(given)
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
    """report.html of one run, by the first process; several requests are compared in it."""
    if jax.process_index() == 0:
        from jaxforget.report import load_run, write_report

        earlier = sorted(run.path.glob("requests/*/results.json"), key=lambda f: int(f.parts[-2]))
        runs = [load_run(f.parent, f"request {n}") for n, f in enumerate(earlier, 1)]
        final = load_run(run.path, f"request {len(runs) + 1}" if runs else None)
        write_report([*runs, final], run.report)
