"""Commands that train or score: each reads its configuration and calls its study."""

import json
import pathlib
from typing import Annotated, Any

import typer

from jaxforget.cli.console import (
    Config,
    Debug,
    Json,
    Overrides,
    Quiet,
    conduct,
    console,
    errors,
    print_result,
    rich_console,
)


def unlearn(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a model forget one data set and keep another."""
    with errors(debug, quiet):
        from jaxforget.config import UnlearnConfig
        from jaxforget.studies import unlearn as study

        result = conduct(study, UnlearnConfig, config, overrides, quiet or as_json)
        print_result(result, quiet, as_json)


def finetune(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Teach a model a data set by maximum likelihood."""
    with errors(debug, quiet):
        from jaxforget.config import FinetuneConfig
        from jaxforget.studies import finetune as study

        result = conduct(study, FinetuneConfig, config, overrides, quiet or as_json)
        print_result(result, quiet, as_json)


def continual(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train on a stream of tasks and measure what is kept of each."""
    with errors(debug, quiet):
        from jaxforget.config.stream import ContinualConfig
        from jaxforget.studies import continual as study
        from jaxforget.studies.continual import table_of

        result = conduct(study, ContinualConfig, config, overrides, quiet or as_json)
        if quiet or as_json or not (rows := table_of(result.run_dir)):
            print_result(result, quiet, as_json)
            return
        from jaxforget.report.tables import plain_table

        rich_console().print(plain_table(rows))
        typer.echo(f"results and report: {result.run_dir.path}")


def acquire(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Inject facts into training and measure what is gained and kept of them."""
    with errors(debug, quiet):
        from jaxforget.config.acquire import AcquireConfig
        from jaxforget.studies import acquire as study

        result = conduct(study, AcquireConfig, config, overrides, quiet or as_json)
        print_result(result, quiet, as_json)


def evaluate(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a model with a suite (TOFU, RWKU, MUSE, your own data, ..), without training."""
    with errors(debug, quiet):
        from jaxforget.config import EvaluateConfig
        from jaxforget.studies import evaluate as study

        result = conduct(study, EvaluateConfig, config, overrides, quiet or as_json)
        print_result(result, quiet, as_json)


def sweep(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train many settings of one unlearning run side by side, and mark the best."""
    with errors(debug, quiet):
        from jaxforget.config import SweepConfig
        from jaxforget.studies import sweep as study
        from jaxforget.studies.sweep import table_of

        result = conduct(study, SweepConfig, config, overrides, quiet or as_json)
        if quiet or as_json:
            print_result(result, quiet, as_json)
            return
        from jaxforget.report.tables import plain_table

        rich_console().print(plain_table(table_of(result.run_dir)))
        typer.echo(f"* best, + on the frontier; model, report and results: {result.run_dir.path}")


def audit(
    run: Annotated[
        pathlib.Path | None,
        typer.Argument(help="Run directory of an unlearning, or a YAML configuration."),
    ] = None,
    overrides: Overrides = None,
    meta: Annotated[
        bool,
        typer.Option("--meta", help="Judge the metrics instead, on models trained for it."),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Attack a model that is said to have forgotten, beside the one before and an oracle."""
    with errors(debug, quiet):
        given = list(overrides or ())
        study, schema, told, file, given = (_metrics_to_judge if meta else _model_to_audit)(
            run, given
        )
        result = conduct(study, schema, file, given, quiet or as_json)
        if quiet or as_json:
            print_result(result, quiet, as_json)
            return
        from jaxforget.report.tables import plain_table

        verdict, rows = told(result.run_dir)
        rich_console().print(plain_table(rows))
        typer.echo(verdict)
        typer.echo(f"report: {result.run_dir.report}")


type _Choice = tuple[Any, Any, Any, pathlib.Path | None, list[str]]


def _model_to_audit(run: pathlib.Path | None, overrides: list[str]) -> _Choice:
    """(the study, its schema, what sums it up, the configuration, its overrides)."""
    from jaxforget.config import AuditConfig
    from jaxforget.engine.errors import UserError
    from jaxforget.studies.audit import audit as study
    from jaxforget.studies.audit import summary

    if run is None:
        raise UserError("RUN: name the run directory of an unlearning, or a configuration")
    if run.is_dir():
        run, overrides = None, [f"run={run}", *overrides]
    return study, AuditConfig, summary, run, overrides


def _metrics_to_judge(file: pathlib.Path | None, overrides: list[str]) -> _Choice:
    """The same of `--meta`, whose configuration may be left out."""
    from jaxforget.studies.meta import meta, summary
    from jaxforget.studies.meta_plan import MetaConfig

    if file is not None and "=" in str(file) and not file.exists():
        file, overrides = None, [str(file), *overrides]  # it is an override
    return meta, MetaConfig, summary, file, overrides


def quickstart(
    run_dir: Annotated[pathlib.Path, typer.Option(help="Where to write.")] = pathlib.Path(
        "runs/quickstart"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of people, models and data order.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Teach a tiny model fictitious people, make it forget some, compare with an oracle."""
    with errors(debug, quiet):
        from jaxforget.studies import quickstart as study

        with console(quiet or as_json) as events:
            rows = study(run_dir, seed=seed, events=events)
        if as_json:
            typer.echo(json.dumps({"rows": rows}))
        elif not quiet:
            from jaxforget.report import terminal_table

            rich_console().print(terminal_table(rows))
            rich_console().print(f"report: {run_dir / 'report.html'}")
