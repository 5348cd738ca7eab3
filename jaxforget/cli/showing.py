"""Commands that show or convert what there is: reports, tables, models, the machine."""

import json
import pathlib
from typing import Annotated

import typer

from jaxforget.cli.console import (
    Config,
    Debug,
    Json,
    Overrides,
    Quiet,
    errors,
    rich_console,
)


def report(
    runs: Annotated[list[pathlib.Path], typer.Argument(help="Run directories.")],
    out: Annotated[pathlib.Path, typer.Option(help="HTML file.")] = pathlib.Path("report.html"),
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page that compares runs."""
    with errors(debug, quiet):
        from jaxforget.report import load_run, write_report

        summaries = [load_run(run) for run in runs]
        write_report(summaries, out)
        if as_json:
            typer.echo(json.dumps({"report": str(out), "rows": [run.row() for run in summaries]}))
        elif not quiet:
            typer.echo(str(out))


def requests(
    runs: Annotated[
        list[pathlib.Path],
        typer.Argument(help="One run of several requests, or several runs of one method."),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Tabulate how forgetting holds up: over a run's requests, or over growing forget sets."""
    with errors(debug):
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
        rich_console().print(plain_table(turned))


def convert(
    model: Annotated[str, typer.Argument(help="HF folder or id, .gguf file or run directory.")],
    folder: Annotated[pathlib.Path, typer.Argument(help="Hugging Face folder to write.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write any model that can be read as a Hugging Face folder."""
    with errors(debug):
        from jaxforget.models.language_model import load

        load(model, dtype=dtype).save_pretrained(folder)
        typer.echo(str(folder))


def methods(as_json: Json = False, debug: Debug = False) -> None:
    """List the unlearning methods: formula, source, what each needs."""
    with errors(debug):
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


def strategies(as_json: Json = False, debug: Debug = False) -> None:
    """List the strategies for streams of tasks: formula, source, what each needs."""
    with errors(debug):
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


def plan(
    config: Config,
    overrides: Overrides = None,
    devices: Annotated[
        str, typer.Option(help="What to run on, and how many: tpu-v5e:16, h100:8.")
    ] = "h100:1",
    length: Annotated[int, typer.Option(help="Tokens of an example.")] = 256,
    labelled: Annotated[int, typer.Option(help="Of these, targets of the loss.")] = 128,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say whether a run fits so many devices, and how fast it should be, without running it."""
    with errors(debug):
        import dataclasses

        from jaxforget.engine.hardware import DEVICES
        from jaxforget.report.tables import plain_table
        from jaxforget.studies import plan as study

        found, name = study.planned(
            config, overrides or (), devices, length=length, labelled=labelled
        )
        if as_json:
            memory = {**dataclasses.asdict(found.memory), "total": found.memory.total}
            typer.echo(json.dumps({**dataclasses.asdict(found), "memory": memory}))
            return
        rich_console().print(plain_table(study.table(found, DEVICES[name])))
        typer.echo(study.verdict(found, name, DEVICES[name]))


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Print devices, versions and memory, and say what is missing."""
    with errors(debug):
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
