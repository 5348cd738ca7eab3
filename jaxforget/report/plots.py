"""Figures as inline SVG: deterministic, no network, readable on light and dark pages."""

import io
from collections.abc import Sequence
from typing import Any

from jaxforget.report.tables import RunSummary

COLOURS = ("#3b7dd8", "#e07b39", "#3a9d6e", "#b04fb5", "#c9a227", "#d64550", "#5b6770", "#17a2b8")
INK = "#7a8290"
_TERMS = ("forget", "retain", "nll")


def trade_off(runs: Sequence[RunSummary]) -> str:
    """Forgetting (x, left is more forgotten) against what is kept (y, up is better).

    y is model utility where every run has it, else retain probability. "" where nothing can be
    drawn.
    """
    kept = "model_utility"
    if any(run.metrics.get(kept) is None for run in runs):
        kept = "retain_prob"
    points = [
        (run, run.metrics["forget_prob"], run.metrics[kept])
        for run in runs
        if run.metrics.get("forget_prob") is not None and run.metrics.get(kept) is not None
    ]
    if not points:
        return ""
    figure, axes = new_figure(7.0, 4.2)
    for index, (run, x, y) in enumerate(points):
        oracle = run.name == "oracle"
        axes.scatter(
            x,
            y,
            s=150 if oracle else 70,
            marker="*" if oracle else "o",
            color=COLOURS[index % len(COLOURS)],
            zorder=3,
        )
    _label(axes, [(run.name, x, y) for run, x, y in points])
    for run, x, _ in points:
        if run.name == "oracle":
            axes.axvline(x, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("probability of the answers to forget  (the oracle's is the goal)")
    axes.set_ylabel(kept.replace("_", " ").replace("prob", "probability"))
    axes.margins(0.12)
    return svg_of(figure, "trade-off")


def _label(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside their points, moved down where they would cover one another."""
    placed: list[tuple[float, float]] = []
    axes.figure.canvas.draw()
    for name, x, y in sorted(points, key=lambda point: -point[2]):
        left, top = axes.transData.transform((x, y))
        left, top = left + 9, top + 4
        while any(abs(top - other) < 12 and abs(left - at) < 80 for at, other in placed):
            top -= 12
        placed.append((left, top))
        spot = axes.transData.inverted().transform((left, top))
        axes.annotate(name, (x, y), xytext=spot, textcoords="data", fontsize=9, color=INK)


def loss_curves(run: RunSummary) -> str:
    """Each logged term of one run over its steps; "" where nothing was logged."""
    names = [name for name in _TERMS if any(name in row for row in run.curves)]
    if not names:
        return ""
    figure, axes = new_figure(4.6, 2.8)
    for index, name in enumerate(names):
        pairs = [
            (row["step"], row[name])
            for row in run.curves
            if isinstance(row.get(name), (int, float))
        ]
        axes.plot(*zip(*pairs, strict=True), label=name, color=COLOURS[index], linewidth=1.6)
    axes.set_xlabel("step")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    axes.set_title(run.name, fontsize=10, color=INK)
    return svg_of(figure, f"curves-{run.name}")


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """(an empty figure, its axes), width and height in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.grid(color=INK, alpha=0.18, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def svg_of(figure: Any, salt: str) -> str:
    """A figure as inline SVG; the same figure and salt give the same bytes."""
    import matplotlib

    buffer = io.StringIO()
    # a fixed salt and no date: the same data gives the same bytes
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
