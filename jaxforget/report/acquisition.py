"""One self-contained HTML page of what was gained of injected facts, and how it fades."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.engine.files import write_atomically
from jaxforget.report.page import data_uri, filled, yaml_text
from jaxforget.report.plots import COLOURS, INK, new_figure, svg_of
from jaxforget.report.tables import shown

_MODES = {"duplicated": "-", "paraphrased": "--", "once": ":", "never": "-."}
_COLUMNS = ("constant", "r2", "threshold", "law", "probes")


def write_acquisition(
    results: Mapping[str, Any], out: str | pathlib.Path, *, title: str
) -> pathlib.Path:
    """Write the page of one run.

    Args:
      results: as `jaxforget acquire` leaves them.
      out: HTML file, written beside and renamed.
      title: of the page.
    """
    write_atomically(out, render(results, title))
    return pathlib.Path(out)


def render(results: Mapping[str, Any], title: str) -> str:
    """The page as HTML text; needs no network, embeds everything."""
    return filled(
        "acquisition.html.jinja",
        title=title,
        columns=["gain", *_COLUMNS],
        rows=[row for net in ("", "net_") for row in _rows(results["groups"], net)],
        curves=[svg for kind in _kinds(results) if (svg := curves(results, kind))],
        retained=[svg for net in ("", "net_") if (svg := retained(results, net))],
        primed=primed(results) if results["priming"] else "",
        correlation=(results["priming"] or {}).get("correlation"),
        recalled=[recalled(mode, curves) for mode, curves in results["recall"].items()],
        environment=yaml_text({key: results[key] for key in ("versions", "devices")}),
        json=data_uri("application/json", json.dumps(results, indent=1)),
    )


def _rows(groups: Sequence[Mapping[str, Any]], net: str) -> list[tuple[str, list[str]]]:
    found = []
    for group in groups:
        if f"{net}gain" not in group:
            continue
        kept = group.get(f"{net}retention", {})
        label = f"{group['mode']}, {group['kind']}{' (net of control)' if net else ''}"
        values = [group[f"{net}gain"], *(kept.get(name) for name in _COLUMNS)]
        found.append(
            (label, [value if isinstance(value, str) else shown(value) for value in values])
        )
    return found


def _kinds(results: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(group["kind"] for group in results["groups"]))


def curves(results: Mapping[str, Any], kind: str) -> str:
    """Mean log-probability of one kind of probes, by mode; "" where there is none."""
    groups = [g for g in results["groups"] if g["kind"] == kind and "curve" in g]
    if not groups:
        return ""
    figure, axes = new_figure(8.0, 3.0)
    for index, group in enumerate(groups):
        axes.plot(
            *group["curve"].values(),
            label=group["mode"],
            linewidth=1.3,
            color=COLOURS[index % len(COLOURS)],
            linestyle=_MODES[group["mode"]],
        )
    axes.set_xlabel("updates since the fact's first presentation")
    axes.set_ylabel("mean log-probability, nats a token")
    axes.set_title(f"{kind} probes", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=4)
    return svg_of(figure, f"acquisition-{kind}")


def retained(results: Mapping[str, Any], net: str) -> str:
    """Retainability against the logarithm of time, with the fits; "" where there is none."""
    groups = [g for g in results["groups"] if f"{net}retention" in g]
    if not groups:
        return ""
    kinds = _kinds(results)
    figure, axes = new_figure(8.0, 4.4)
    for group in groups:
        kept, colour = group[f"{net}retention"], COLOURS[kinds.index(group["kind"]) % len(COLOURS)]
        times = np.asarray(kept["times"], float)[1:]
        mean, low, high = (np.asarray(kept[name], float)[1:] for name in ("mean", "low", "high"))
        label, style = f"{group['mode']}, {group['kind']}", _MODES[group["mode"]]
        axes.fill_between(times, low, high, color=colour, alpha=0.10, linewidth=0)
        axes.plot(times, mean, style, color=colour, linewidth=1.0, alpha=0.7)
        if kept["constant"] is not None:
            line = kept["intercept"] - kept["constant"] * np.log10(times)
            label += f": a = {kept['constant']:.2f}"
            axes.plot(times, line, style, color=colour, linewidth=1.9, label=label)
    axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(-0.6, 1.3)
    axes.set_xlabel("updates after the last local acquisition maximum")
    axes.set_ylabel("retainability")
    axes.set_title("net of the control's drift" if net else "as defined", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, ncols=2)
    return svg_of(figure, f"retention-{net}")


def recalled(mode: str, measures: Mapping[str, Any]) -> str:
    """Share left of what study has gained, recognition and recall."""
    figure, axes = new_figure(8.0, 3.2)
    for index, (name, curve) in enumerate(measures.items()):
        left = np.asarray(curve["left"], float)
        axes.plot(
            np.asarray(curve["times"]) + 1,
            left,
            label=name.replace("_", " "),
            color=COLOURS[index % len(COLOURS)],
            linewidth=1.5,
            marker="o" if len(left) < 30 else None,
            markersize=3,
        )
    axes.set_xscale("log")
    axes.set_xlabel("1 + updates after the last presentation")
    axes.set_ylabel("share of the gain left")
    axes.set_title(f"texts {mode}", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return svg_of(figure, f"recall-{mode}")


def primed(results: Mapping[str, Any]) -> str:
    """Mean log-ratios of keywords in their own texts and elsewhere, by category and mode."""
    groups = results["priming"]["groups"]
    categories = list(dict.fromkeys(group["category"] for group in groups))
    figure, axes = new_figure(8.0, 3.6)
    for group in groups:
        colour = COLOURS[categories.index(group["category"]) % len(COLOURS)]
        for name, width in (("memory", 1.0), ("priming", 2.0)):
            axes.plot(
                group["times"],
                group[name],
                _MODES[group["mode"]],
                color=colour,
                linewidth=width,
                label=f"{group['category']}, {group['mode']}: {name}",
            )
    axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("updates since the last presentation")
    axes.set_ylabel("log P after / P before, nats")
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, ncols=2)
    return svg_of(figure, "priming")
