"""One self-contained HTML page for runs on a stream of tasks."""

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.engine.files import write_atomically
from jaxforget.report.page import data_uri, filled, yaml_text
from jaxforget.report.plots import COLOURS, INK, new_figure, svg_of
from jaxforget.report.tables import shown

type Runs = Mapping[str, Mapping[str, Any]]
"""results.json of each run, by label."""


def write_continual(
    runs: Runs,
    out: str | pathlib.Path,
    *,
    title: str,
    effects: Mapping[str, Mapping[str, Any]] | None = None,
) -> pathlib.Path:
    """Write the page of one run, or of several that are compared.

    Args:
      runs: as `jaxforget continual` leaves them.
      out: HTML file, written beside and renamed.
      title: of the page.
      effects: sizes of effects by name and metric, as results.json has them.
    """
    write_atomically(out, render(runs, title, effects))
    return pathlib.Path(out)


def render(runs: Runs, title: str, effects: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """The page as HTML text; needs no network, embeds everything."""
    columns = list(dict.fromkeys(name for each in runs.values() for name in each["metrics"]))
    first = next(iter(runs.values()))
    return filled(
        "continual.html.jinja",
        title=title,
        columns=columns,
        rows=[
            (label, [shown(each["metrics"].get(name)) for name in columns])
            for label, each in runs.items()
        ],
        overview=overview(runs) if len(runs) > 1 else "",
        matrices=[matrix(label, each) for label, each in runs.items()],
        curves=[svg for label, each in runs.items() if (svg := curves(label, each))],
        transfer=transfer(runs),
        retained=[svg for label, each in runs.items() if (svg := retention(label, each))],
        modules=[svg for label, each in runs.items() if (svg := modules(label, each))],
        effects=effects or {},
        environment=yaml_text({key: first[key] for key in ("versions", "devices")}),
        csv=data_uri("text/csv", table(runs, columns)),
        json=data_uri("application/json", json.dumps(runs, indent=1)),
    )


def matrix(label: str, results: Mapping[str, Any]) -> str:
    """Mean NLL of every task (columns) after every task (rows), less that after its own.

    Blue is better than at the task's own end, red is forgotten.
    """
    about = results["matrix"]
    nll, tasks, trained = np.asarray(about["nll"]), about["tasks"], about["trained"]
    square = len(nll) == len(tasks) + 1
    own = np.asarray([nll[i + 1, i] for i in range(len(tasks))]) if square else nll[-1]
    change = nll - own
    widest = max(float(np.abs(change[1:]).max()), 1e-6)
    figure, axes = new_figure(1.6 + 0.62 * len(tasks), 0.9 + 0.34 * len(nll))
    axes.imshow(change, cmap="RdBu_r", vmin=-widest, vmax=widest, aspect="auto")
    axes.grid(False)
    for row, column in np.ndindex(*nll.shape):
        dark = abs(change[row, column]) > 0.6 * widest
        axes.text(
            column,
            row,
            f"{nll[row, column]:.2f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )
    axes.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right")
    axes.set_yticks(range(len(nll)), trained)
    axes.set_title(label, fontsize=10, color=INK)
    return svg_of(figure, f"matrix-{label}")


def curves(label: str, results: Mapping[str, Any]) -> str:
    """The probe's loss of every task over the steps, with the ends of tasks; "" without looks."""
    looks = results["looks"]
    if len(looks) < 2:
        return ""
    figure, axes = new_figure(8.0, 3.2)
    steps = [row["step"] for row in looks]
    nll = np.asarray([row["nll"] for row in looks])
    for index, name in enumerate(results["matrix"]["tasks"]):
        axes.plot(
            steps,
            nll[:, index],
            label=name,
            linewidth=1.2,
            color=COLOURS[index % len(COLOURS)],
            linestyle="-" if index < len(COLOURS) else "--",
        )
    for end in results["ends"]:
        axes.axvline(end, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("step")
    axes.set_ylabel("mean NLL of the probe")
    axes.set_title(label, fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, ncols=3)
    return svg_of(figure, f"looks-{label}")


def transfer(runs: Runs) -> str:
    """Mean rise above the start by how many tasks ago a task was trained, below 0 how many before;
    "" where no run trains task after task."""
    found = {label: each.get("transfer", {"distance": []}) for label, each in runs.items()}
    found = {label: each for label, each in found.items() if each["distance"]}
    if not found:
        return ""
    figure, axes = new_figure(8.0, 3.2)
    for index, (label, each) in enumerate(found.items()):
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(each["distance"], each["mean"], ".-", color=colour, linewidth=1.3, label=label)
    axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("tasks since a task was trained (left of 0: until it will be)")
    axes.set_ylabel("better than at the start, nats a token")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=3)
    return svg_of(figure, "transfer")


def retention(label: str, results: Mapping[str, Any]) -> str:
    """What is left of every task's gain over the steps since its end, with the best law and its
    band; "" where no curve was fitted."""
    rows = [row for row in results.get("retention", ()) if "law" in row]
    if not rows:
        return ""
    figure, axes = new_figure(8.0, 3.8)
    for index, row in enumerate(rows):
        colour, times = COLOURS[index % len(COLOURS)], np.asarray(row["times"], float) + 1
        best = row["laws"][row["law"]]
        half = shown(best["half_life"]) if best["half_life"] is not None else "none"
        text = f"{row['task']}: {row['law']}, b = {best['b']:.3g}, half life {half}"
        axes.plot(times, row["left"], ".", color=colour, markersize=3, alpha=0.5)
        axes.plot(times, row["fit"], color=colour, linewidth=1.6, label=text)
        if row["low"] is not None and row["high"] is not None:
            axes.fill_between(times, row["low"], row["high"], color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("1 + steps since the task's end")
    axes.set_ylabel("share of its gain left")
    axes.set_title(label, fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    return svg_of(figure, f"retained-{label}")


def modules(label: str, results: Mapping[str, Any]) -> str:
    """Mean absolute change of each kind of module in every task, over layers; "" where it was not
    measured."""
    rows = [row for row in results.get("modules", ()) if "change" in row]
    if not rows:
        return ""
    paths = sorted(rows[0]["change"])
    figure, axes = new_figure(8.0, 1.0 + 0.22 * len(paths) * max(1, len(rows) / 3))
    high = 0.8 / len(rows)
    for index, row in enumerate(rows):
        means = [float(np.mean(row["change"][path])) for path in paths]
        places = np.arange(len(paths)) + index * high - 0.4
        colour = COLOURS[index % len(COLOURS)]
        axes.barh(places, means, height=high, color=colour, label=row["task"])
    axes.set_yticks(range(len(paths)), paths, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("mean absolute change of a parameter in the task")
    axes.set_title(label, fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    return svg_of(figure, f"modules-{label}")


def overview(runs: Runs) -> str:
    """What was learned of the tasks at their ends against what was lost of it afterwards."""
    points = [
        (label, each["metrics"]["learned_nll"], -each["metrics"]["backward_transfer"])
        for label, each in runs.items()
        if each["metrics"].get("backward_transfer") is not None
    ]
    if len(points) < 2:
        return ""
    figure, axes = new_figure(7.0, 4.2)
    for index, (label, learned, lost) in enumerate(points):
        axes.scatter(learned, lost, s=70, color=COLOURS[index % len(COLOURS)], zorder=3)
        axes.annotate(
            label, (learned, lost), xytext=(7, 3), textcoords="offset points", fontsize=9, color=INK
        )
    axes.set_xlabel("mean NLL of each task at its own end  (left has learned more)")
    axes.set_ylabel("rise until the end  (down has kept more)")
    axes.margins(0.14)
    return svg_of(figure, "continual-overview")


def table(runs: Runs, columns: Sequence[str]) -> str:
    """All metrics as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["run", *columns])
    for label, each in runs.items():
        writer.writerow([label, *(each["metrics"].get(name) for name in columns)])
    return buffer.getvalue()
