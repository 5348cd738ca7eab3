"""One self-contained HTML page for one run or a comparison of several."""

import base64
import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jaxforget.engine.files import write_atomically
from jaxforget.report.plots import loss_curves, trade_off
from jaxforget.report.tables import COLUMNS, RunSummary, load_run, shown

EXAMPLES = 12


def write_report(
    runs: Sequence[str | pathlib.Path | RunSummary],
    out: str | pathlib.Path,
    *,
    title: str = "jaxforget report",
) -> pathlib.Path:
    """Write the page.

    Args:
      runs: run directories or summaries already read; at least one.
      out: HTML file, written beside and renamed.
      title: of the page.
    Raises:
      UserError: a run directory that cannot be read.
    """
    summaries = [run if isinstance(run, RunSummary) else load_run(run) for run in runs]
    write_atomically(out, render(summaries, title))
    return pathlib.Path(out)


def filled(template: str, **values: Any) -> str:
    """A page of this package as HTML text.

    Args:
      template: file beside this one.
      values: what it names; one that is missing raises. The style is there by itself.
    """
    import jinja2

    folder = resources.files("jaxforget.report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(folder.joinpath(template).read_text())
    return page.render(style=folder.joinpath("style.css").read_text(), **values)


def render(runs: Sequence[RunSummary], title: str) -> str:
    """The page as HTML text; needs no network, embeds everything."""
    rows = [run.row() for run in runs]
    curves = [svg for run in runs if (svg := loss_curves(run))]
    return filled(
        "page.html.jinja",
        title=title,
        columns=COLUMNS,
        rows=[{key: shown(value) for key, value in row.items()} for row in rows],
        trade_off=trade_off(runs) if len(runs) > 1 else "",
        curves=curves,
        examples=side_by_side(runs),
        names=[run.name for run in runs],
        runs=runs,
        all_metrics=_all_metrics(runs),
        csv=data_uri("text/csv", _csv(rows)),
        json=data_uri("application/json", json.dumps(rows, indent=1)),
        yaml=yaml_text,
    )


def side_by_side(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Questions of the forget and retain sets with the truth and every run's answer."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for run in runs:
        for item in run.generations:
            key = (str(item["set"]), int(item["row"]))
            entry = found.setdefault(
                key,
                {"set": key[0], "prompt": item["prompt"], "truth": item["truth"], "answers": {}},
            )
            entry["answers"][run.name] = item["answer"]
    chosen = []
    for name in ("forget", "retain"):
        chosen += [entry for key, entry in sorted(found.items()) if key[0] == name][:EXAMPLES]
    return chosen


def _all_metrics(runs: Sequence[RunSummary]) -> list[tuple[str, list[str]]]:
    names = sorted({name for run in runs for name in run.metrics})
    return [(name, [shown(run.metrics.get(name)) for run in runs]) for name in names]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(COLUMNS))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def data_uri(kind: str, text: str) -> str:
    """A file's contents as an address that a page can link to."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def yaml_text(value: Any) -> str:
    """Plain values as YAML."""
    import yaml

    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False)
