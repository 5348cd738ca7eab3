"""Figures of an audit as inline SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxforget.report.plots import COLOURS, INK, new_figure, svg_of

SHADE = {"start": COLOURS[1], "audited": COLOURS[0], "oracle": COLOURS[2]}


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
    """One figure a curve that the attack has, every model in it."""
    names = list(dict.fromkeys(name for each in attack["curves"].values() for name in each))
    return [_curve(attack, name) for name in names]


def _curve(attack: Mapping[str, Any], name: str) -> str:
    figure, axes = new_figure(4.6, 2.8)
    for model, curves in attack["curves"].items():
        if name in curves:
            x, y = zip(*curves[name], strict=True)
            axes.plot(
                x, y, marker="o", markersize=3, linewidth=1.5, label=model, color=SHADE[model]
            )
    axes.set_title(f"{attack['label']}: {name.replace('_', ' ')}", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return svg_of(figure, f"audit-{attack['label']}-{name}")
