"""One self-contained HTML page for a meta-evaluation of metrics."""

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxforget.engine.files import write_atomically
from jaxforget.report.page import data_uri, filled, yaml_text
from jaxforget.report.plots import COLOURS, INK, new_figure, svg_of
from jaxforget.report.tables import shown

COLUMNS = ("faithfulness", "relearning", "quantisation", "robustness", "overall")


def write_meta(results: Mapping[str, Any], out: str | pathlib.Path) -> pathlib.Path:
    """Write the page of a meta-evaluation's results.json.

    Args:
      results: as `jaxforget audit --meta` leaves them.
      out: HTML file, written beside and renamed.
    """
    write_atomically(out, render(results))
    return pathlib.Path(out)


def render(results: Mapping[str, Any]) -> str:
    """The page as HTML text; needs no network, embeds everything."""
    verdicts, models = results["verdicts"], results["models"]
    names = [each["metric"] for each in verdicts]
    return filled(
        "meta.html.jinja",
        verdict=results["verdict"],
        columns=COLUMNS,
        rows=[(each["metric"], [shown(each[name]) for name in COLUMNS]) for each in verdicts],
        ranking=_ranking(verdicts),
        pools=[_pool(results, name) for name in names],
        names=names,
        models=[
            (model, [shown(found.get(name)) for name in names]) for model, found in models.items()
        ],
        environment=yaml_text({key: results[key] for key in ("versions", "devices")}),
        csv=data_uri("text/csv", as_csv(verdicts)),
        json=data_uri("application/json", json.dumps(results, indent=1)),
    )


def _ranking(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Faithfulness and both robustnesses of every metric."""
    figure, axes = new_figure(7.0, 0.9 + 0.32 * len(verdicts))
    marks = {"faithfulness": "o", "relearning": "^", "quantisation": "s"}
    for colour, (column, mark) in zip(COLOURS, marks.items(), strict=False):
        points = [
            (each[column], place)
            for place, each in enumerate(reversed(verdicts))
            if each[column] is not None
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), s=36, marker=mark, color=colour, label=column)
    axes.set_yticks(range(len(verdicts)), [each["metric"] for each in reversed(verdicts)])
    axes.set_xlim(-0.03, 1.03)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower left")
    return svg_of(figure, "meta-ranking")


def _pool(results: Mapping[str, Any], metric: str) -> str:
    """What one metric says of every model of either pool, and of those that were to forget."""
    figure, axes = new_figure(3.4, 1.5)
    groups = {**results["pools"], "unlearned": results["unlearned"]}
    for place, (colour, names) in enumerate(zip(COLOURS, groups.values(), strict=False)):
        values = [results["models"][name].get(metric) for name in names]
        there = [value for value in values if value is not None]
        axes.scatter(there, [-place] * len(there), s=28, color=colour, alpha=0.8)
    axes.set_yticks([-place for place in range(len(groups))], list(groups))
    axes.set_ylim(-len(groups) + 0.4, 0.6)
    axes.set_title(metric, fontsize=9, color=INK)
    return svg_of(figure, f"meta-{metric}")


def as_csv(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """One line a metric."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["metric", *COLUMNS])
    writer.writeheader()
    writer.writerows(verdicts)
    return buffer.getvalue()
