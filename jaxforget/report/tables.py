"""Runs as rows: what a report shows, read from run directories."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import read_metrics

COLUMNS: Mapping[str, str] = {
    "name": "the run",
    "forget_prob": "probability of the true answers to forget (length-normalised); lower is "
    "more forgotten, the oracle's is the goal",
    "retain_prob": "the same on what must be kept; higher is better",
    "forget_rouge": "overlap of generated and true answers on the forget set (ROUGE-L recall)",
    "forget_quality": "p-value of a Kolmogorov-Smirnov test: can truth ratios be told from the "
    "oracle's? 1 is best, below 0.05 they can",
    "model_utility": "harmonic mean of probability, ROUGE and truth ratio over three kept sets",
    "seconds": "wall time of training",
}


@dataclass(frozen=True)
class RunSummary:
    """One run of a report.

    Attributes:
      name: shown in tables and plots.
      metrics: final metrics by name; None where one could not be computed.
      seconds: wall time of training, or None.
      curves: rows of metrics.jsonl, each with "step".
      generations: rows with "set", "row", "prompt", "truth", "answer".
      config: YAML.
      environment: versions and devices.
    """

    name: str
    metrics: Mapping[str, Any]
    seconds: float | None = None
    curves: Sequence[Mapping[str, Any]] = ()
    generations: Sequence[Mapping[str, Any]] = ()
    config: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The report's table row: `COLUMNS` in order."""
        values = {key: self.metrics.get(key) for key in COLUMNS}
        return {**values, "name": self.name, "seconds": self.seconds}


def load_run(path: str | pathlib.Path, name: str | None = None) -> RunSummary:
    """Read a run directory.

    Args:
      path: of the run directory.
      name: shown instead of the directory's own name.
    Raises:
      UserError: no such directory, or its results.json is missing or damaged.
    """
    run = pathlib.Path(path)
    file = run / "results.json"
    if not run.is_dir():
        raise UserError(f"report: no run directory {run}")
    if not file.exists():
        raise UserError(f"report: {file} is missing; the run has not finished")
    try:
        results = json.loads(file.read_text())
        metrics = dict(results["metrics"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"report: {file} is damaged: {error}") from error
    config = run / "config.yaml"
    return RunSummary(
        name=name or run.resolve().name,
        metrics=metrics,
        seconds=results.get("seconds"),
        curves=read_metrics(run / "metrics.jsonl"),
        generations=results.get("generations", []),
        config=config.read_text() if config.exists() else "",
        environment={key: results.get(key, {}) for key in ("versions", "devices", "throughput")},
    )


def shown(value: Any) -> str:
    """A cell: three significant digits, small p-values in powers of ten, "-" for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
    return str(value)


def terminal_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A rich table of report rows, for the command line."""
    cells = [{key: row.get(key) for key in COLUMNS} for row in rows]
    for row in cells:
        if row["seconds"] is not None:
            row["seconds"] = f"{row['seconds']:.1f}"
    return plain_table(cells)


def plain_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A rich table without frames, a column for each key of the first row.

    Headings break at underscores, so that a table of ten columns fits a terminal; the first
    column, which names the row, is never broken.
    """
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(rows[0]):
        text = any(isinstance(row[column], str) and column != "seconds" for row in rows)
        heading = column.replace("_", " ")
        side = "left" if text else "right"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(shown, row.values()))
    return table
