"""Figures of an audit as inline SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxforget.report.plots import COLOURS, INK, new_figure, svg_of

SHADE = {"start": COLOURS[1], "audited": COLOURS[0], "oracle": COLOURS[2]}
SIDES = {"forget": "-", "holdout": "--"}
DOTTED = 16  # points of a curve up to which each has its dot
_PROBABILITY = "probability of the answers"
AXES = {
    "roc": ("false positive rate", "true positive rate"),
    "landscape": ("share of a record's variants", "loss above the record's, nats"),
    "forget_prob": ("steps of training", _PROBABILITY),
    "forget_memorised": ("steps of training", "share of their tokens known"),
    "leak": ("answers drawn to a question", "questions with a true one"),
    "prob": ("layer", _PROBABILITY),
    "prob_layer": ("strength", _PROBABILITY),
    "accuracy": ("layer", "accuracy of the probe"),
    "searched_prob": ("steps of the search", _PROBABILITY),
}


def dots(attacks: Sequence[Mapping[str, Any]]) -> str:
    """What is left of the knowledge under every attack, with its interval; 0 is the oracle's."""
    told = [each for each in attacks if each["left"] is not None]
    if not told:
        return ""
    figure, axes = new_figure(7.0, 0.9 + 0.36 * len(told))
    for place, each in enumerate(reversed(told)):
        if each["low"] is not None:
            axes.plot(
                [each["low"], each["high"]], [place, place], color=SHADE["audited"], alpha=0.5
            )
        axes.scatter(each["left"], place, s=55, color=SHADE["audited"], zorder=3)
    for x, name in ((0.0, "never knew"), (1.0, "before")):
        axes.axvline(x, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(name, (x, len(told) - 0.45), fontsize=8, color=INK, ha="center")
    axes.set_yticks(range(len(told)), [each["label"] for each in reversed(told)])
    axes.set_ylim(-0.6, len(told) - 0.1)
    axes.set_xlabel("share of the knowledge that is left")
    return svg_of(figure, "audit-dots")


def curves_of(attack: Mapping[str, Any]) -> list[str]:
    """One figure a curve that the attack has, every model in it.

    Curves whose names differ only in `_forget` and `_holdout` at the end share one.
    """
    names = list(dict.fromkeys(name for each in attack["curves"].values() for name in each))
    groups: dict[str, dict[str, str]] = {}  # title -> what a line is of -> curve
    for name in names:
        title, _, side = name.rpartition("_")
        pair = side in SIDES and all(f"{title}_{each}" in names for each in SIDES)
        groups.setdefault(title if pair else name, {})[side if pair else ""] = name
    return [_curve(attack, title, lines) for title, lines in groups.items()]


def _curve(attack: Mapping[str, Any], title: str, lines: Mapping[str, str]) -> str:
    figure, axes = new_figure(4.6, 2.8)
    for model, curves in attack["curves"].items():
        for side, name in lines.items():
            if name not in curves:
                continue
            x, y = zip(*curves[name], strict=True)
            axes.plot(
                x,
                y,
                marker="o" if len(x) <= DOTTED else "",
                markersize=3,
                linewidth=1.5,
                linestyle=SIDES.get(side, "-"),
                label=f"{model}, {side}" if side else model,
                color=SHADE[model],
            )
    x_label, y_label = AXES.get(title.rstrip("_0123456789"), ("", ""))
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel(y_label, fontsize=8)
    axes.set_title(f"{attack['label']}: {title.replace('_', ' ')}", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return svg_of(figure, f"audit-{attack['label']}-{title}")
