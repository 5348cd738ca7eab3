"""The command line: parse, call a study, print. Heavy imports wait until a command needs them."""

import contextlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make language models forget on purpose, and measure what they keep.",
)

Config = Annotated[pathlib.Path, typer.Argument(help="YAML configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides such as train.epochs=3 method.beta=0.2.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


_ROOM = (
    "Lower train.batch_size, or set train.accumulate, train.remat=full, lora.rank, or mesh.fsdp "
    "over more devices."
)


@app.command()
def unlearn(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a model forget one data set and keep another."""
    with _errors(debug, quiet):
        from jaxforget import config as configs
        from jaxforget.studies import unlearn as study

        settings = configs.load(configs.UnlearnConfig, config, overrides or ())
        _start_processes()
        with _console(quiet or as_json) as events:
            _print_result(study(settings, events), quiet, as_json)


@app.command()
def finetune(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Teach a model a data set by maximum likelihood."""
    with _errors(debug, quiet):
        from jaxforget import config as configs
        from jaxforget.studies import finetune as study

        settings = configs.load(configs.FinetuneConfig, config, overrides or ())
        _start_processes()
        with _console(quiet or as_json) as events:
            _print_result(study(settings, events), quiet, as_json)


@app.command()
def continual(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train on a stream of tasks and measure what is kept of each."""
    with _errors(debug, quiet):
        from jaxforget import config as configs
        from jaxforget.stream_config import ContinualConfig
        from jaxforget.studies import continual as study

        settings = configs.load(ContinualConfig, config, overrides or ())
        _start_processes()
        with _console(quiet or as_json) as events:
            result = study(settings, events)
        if quiet or as_json or not settings.runs:
            _print_result(result, quiet, as_json)
            return
        from jaxforget.report.tables import plain_table
        from jaxforget.studies.continual import table_of

        _rich().print(plain_table(table_of(result.run_dir)))
        typer.echo(f"results and report: {result.run_dir.path}")


@app.command()
def acquire(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Inject facts into training and measure what is gained and kept of them."""
    with _errors(debug, quiet):
        from jaxforget import config as configs
        from jaxforget.acquire_config import AcquireConfig
        from jaxforget.studies import acquire as study

        settings = configs.load(AcquireConfig, config, overrides or ())
        _start_processes()
        with _console(quiet or as_json) as events:
            _print_result(study(settings, events), quiet, as_json)


@app.command()
def evaluate(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a model with a suite (TOFU, RWKU, MUSE, your own data, ..), without training."""
    with _errors(debug, quiet):
        from jaxforget import config as configs
        from jaxforget.studies import evaluate as study

        settings = configs.load(configs.EvaluateConfig, config, overrides or ())
        _start_processes()
        with _console(quiet or as_json) as events:
            _print_result(study(settings, events), quiet, as_json)


@app.command()
def sweep(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train many settings of one unlearning run side by side, and mark the best."""
    with _errors(debug, quiet):
        from jaxforget import config as configs
        from jaxforget.studies import sweep as study
        from jaxforget.studies.sweep import table_of

        settings = configs.load(configs.SweepConfig, config, overrides or ())
        _start_processes()
        with _console(quiet or as_json) as events:
            result = study(settings, events)
        if quiet or as_json:
            _print_result(result, quiet, as_json)
            return
        from jaxforget.report.tables import plain_table

        _rich().print(plain_table(table_of(result.run_dir)))
        typer.echo(f"* best, + on the frontier; model, report and results: {result.run_dir.path}")


@app.command()
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
    with _errors(debug, quiet):
        given = list(overrides or ())
        study, settings, told = (_metrics_to_judge if meta else _model_to_audit)(run, given)
        _start_processes()
        with _console(quiet or as_json) as events:
            result = study(settings, events)
        if quiet or as_json:
            _print_result(result, quiet, as_json)
            return
        from jaxforget.report.tables import plain_table

        verdict, rows = told(result.run_dir)
        _rich().print(plain_table(rows))
        typer.echo(verdict)
        typer.echo(f"report: {result.run_dir.report}")


def _model_to_audit(run: pathlib.Path | None, overrides: list[str]) -> tuple[Any, Any, Any]:
    """(the study, its settings, what sums it up)."""
    from jaxforget import config as configs
    from jaxforget.engine.errors import UserError
    from jaxforget.studies.audit import audit as study
    from jaxforget.studies.audit import summary

    if run is None:
        raise UserError("RUN: name the run directory of an unlearning, or a configuration")
    if run.is_dir():
        run, overrides = None, [f"run={run}", *overrides]
    return study, configs.load(configs.AuditConfig, run, overrides), summary


def _metrics_to_judge(file: pathlib.Path | None, overrides: list[str]) -> tuple[Any, Any, Any]:
    """The same of `--meta`, whose configuration may be left out."""
    from jaxforget import config as configs
    from jaxforget.studies.meta import meta, summary
    from jaxforget.studies.meta_plan import MetaConfig

    if file is not None and "=" in str(file) and not file.exists():
        file, overrides = None, [str(file), *overrides]  # it is an override
    return meta, configs.load(MetaConfig, file, overrides), summary


@app.command()
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
    with _errors(debug, quiet):
        from jaxforget.studies import quickstart as study

        with _console(quiet or as_json) as events:
            rows = study(run_dir, seed=seed, events=events)
        if as_json:
            typer.echo(json.dumps({"rows": rows}))
        elif not quiet:
            from jaxforget.report import terminal_table

            _rich().print(terminal_table(rows))
            _rich().print(f"report: {run_dir / 'report.html'}")


@app.command()
def report(
    runs: Annotated[list[pathlib.Path], typer.Argument(help="Run directories.")],
    out: Annotated[pathlib.Path, typer.Option(help="HTML file.")] = pathlib.Path("report.html"),
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page that compares runs."""
    with _errors(debug, quiet):
        from jaxforget.report import load_run, write_report

        summaries = [load_run(run) for run in runs]
        write_report(summaries, out)
        if as_json:
            typer.echo(json.dumps({"report": str(out), "rows": [run.row() for run in summaries]}))
        elif not quiet:
            typer.echo(str(out))


@app.command()
def requests(
    runs: Annotated[
        list[pathlib.Path],
        typer.Argument(help="One run of several requests, or several runs of one method."),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Tabulate how forgetting holds up: over a run's requests, or over growing forget sets."""
    with _errors(debug):
        from jaxforget.report.tables import plain_table
        from jaxforget.studies.sequence import scalability, sustainability

        rows = sustainability(runs[0]) if len(runs) == 1 else scalability(runs)
        if as_json:
            typer.echo(json.dumps({"rows": rows}))
            return
        names = list(dict.fromkeys(name for row in rows for name in row))
        kept = [name for name in names if any(row.get(name) is not None for row in rows)]
        turned = [
            {"": name, **{str(i): row.get(name) for i, row in enumerate(rows, 1)}} for name in kept
        ]
        _rich().print(plain_table(turned))


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="HF folder or id, .gguf file or run directory.")],
    folder: Annotated[pathlib.Path, typer.Argument(help="Hugging Face folder to write.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write any model that can be read as a Hugging Face folder."""
    with _errors(debug):
        from jaxforget.models.language_model import load

        load(model, dtype=dtype).save_pretrained(folder)
        typer.echo(str(folder))


@app.command()
def methods(as_json: Json = False, debug: Debug = False) -> None:
    """List the unlearning methods: formula, source, what each needs."""
    with _errors(debug):
        from jaxforget.methods import table

        rows = table()
        if as_json:
            typer.echo(json.dumps(rows))
            return
        for row in rows:
            name = typer.style(f"{row['name']:<20}", bold=True)
            needs = "the forget set alone" if row["needs"] == "-" else row["needs"]
            typer.echo(f"{name} {row['method']}. {row['source']}")
            typer.echo(f"{'':<20} {row['minimises']}")
            typer.echo(f"{'':<20} needs {needs}; {row['cost per step']}")


@app.command()
def strategies(as_json: Json = False, debug: Debug = False) -> None:
    """List the strategies for streams of tasks: formula, source, what each needs."""
    with _errors(debug):
        from jaxforget.strategies import table

        rows = table()
        if as_json:
            typer.echo(json.dumps(rows))
            return
        for row in rows:
            name = typer.style(f"{row['name']:<20}", bold=True)
            needs = "nothing else" if row["needs"] == "-" else row["needs"]
            source = "" if row["source"] == "-" else f". {row['source']}"
            typer.echo(f"{name} {row['strategy']}{source}")
            typer.echo(f"{'':<20} {row['minimises']}")
            typer.echo(f"{'':<20} needs {needs}; {row['cost per step']}; {row['copies']} copies")


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Print devices, versions and memory, and say what is missing."""
    with _errors(debug):
        from jaxforget.studies.doctor import diagnose

        facts, warnings = diagnose()
        if as_json:
            typer.echo(json.dumps({**facts, "warnings": warnings}))
            return
        for key, value in facts.items():
            typer.echo(f"{key:<22} {value}")
        for warning in warnings:
            typer.echo(f"! {warning}")
        if not warnings:
            typer.echo("nothing is missing")


def main() -> None:
    """Entry point of the `jaxforget` command."""
    app(prog_name="jaxforget")  # the same name however python was started


@contextlib.contextmanager
def _errors(debug: bool, quiet: bool = False) -> Iterator[None]:
    """One clear message and exit code 2 for what a user can mend; no traceback unless asked."""
    from jaxforget.engine.errors import UserError

    quiet_logs(logging.ERROR if quiet else logging.WARNING)
    if not debug:  # its threads log tracebacks of failures that reach us as exceptions, too
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        yield
    except UserError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same command again to resume", err=True)
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except OSError as error:  # a full disk, a folder that may not be written
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {place}{error.strerror or error}", err=True)
        raise typer.Exit(2) from None
    except Exception as error:
        if debug:
            raise
        message = str(error).strip() or type(error).__name__
        if "RESOURCE_EXHAUSTED" in message:
            typer.echo(f"error: out of memory: {message.splitlines()[0]}\n{_ROOM}", err=True)
            raise typer.Exit(2) from None
        typer.echo(f"error: {type(error).__name__}: {message}\n(--debug shows where)", err=True)
        raise typer.Exit(1) from None


def quiet_logs(level: int = logging.WARNING) -> None:
    """Messages of ours alone, from `level` on, on the terminal; a run's log.txt has everything."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of its own workings


def _start_processes() -> None:
    """Join the other processes of a multi-host run, where the environment describes one."""
    from jaxforget.engine.runtime import start_distributed

    start_distributed()


@contextlib.contextmanager
def _console(silent: bool) -> Iterator[Any]:
    """Live progress on a terminal, plain lines elsewhere."""
    from jaxforget.studies import Events

    if silent:
        yield Events()
        return
    from jaxforget.report.console import live

    with live(_rich(stderr=True)) as events:
        yield events


def _print_result(result: Any, quiet: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"run_dir": str(result.run_dir.path), "metrics": result.metrics}))
    elif not quiet:
        for name, value in result.metrics.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            typer.echo(f"{name:<28} {shown}")
        typer.echo(f"run directory: {result.run_dir.path}")


def _rich(*, stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, file=None if not stderr else sys.stderr)


if __name__ == "__main__":
    main()
