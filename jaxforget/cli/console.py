"""What all commands share: options, clear errors, progress and how a result is printed."""

import contextlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer

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


@contextlib.contextmanager
def errors(debug: bool, quiet: bool = False) -> Iterator[None]:
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


def start_processes() -> None:
    """Join the other processes of a multi-host run, where the environment describes one."""
    from jaxforget.engine.runtime import start_distributed

    start_distributed()


@contextlib.contextmanager
def console(silent: bool) -> Iterator[Any]:
    """Live progress on a terminal, plain lines elsewhere."""
    from jaxforget.studies import Events

    if silent:
        yield Events()
        return
    from jaxforget.report.console import live

    with live(rich_console(stderr=True)) as events:
        yield events


def print_result(result: Any, quiet: bool, as_json: bool) -> None:
    """Where a run is and its measures, on the terminal or as JSON."""
    if as_json:
        typer.echo(json.dumps({"run_dir": str(result.run_dir.path), "metrics": result.metrics}))
    elif not quiet:
        for name, value in result.metrics.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            typer.echo(f"{name:<28} {shown}")
        typer.echo(f"run directory: {result.run_dir.path}")


def rich_console(*, stderr: bool = False) -> Any:
    """A terminal for tables and colours."""
    from rich.console import Console

    return Console(stderr=stderr, file=None if not stderr else sys.stderr)


def conduct[C](
    study: Callable[[C, Any], Any],
    schema: type[C],
    file: pathlib.Path | None,
    overrides: Sequence[str] | None,
    silent: bool,
) -> Any:
    """The result of a study: its configuration read, processes joined, progress shown."""
    from jaxforget import config as configs

    settings = configs.load(schema, file, overrides or ())
    start_processes()
    with console(silent) as events:
        return study(settings, events)
