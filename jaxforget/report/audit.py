"""One self-contained HTML page for an audit."""

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxforget.engine.files import write_atomically
from jaxforget.report.audit_plots import curves_of, dots
from jaxforget.report.page import data_uri, filled, yaml_text
from jaxforget.report.tables import shown

MODELS = ("start", "audited", "oracle")
EXAMPLES = 12


def write_audit(results: Mapping[str, Any], out: str | pathlib.Path, *, title: str) -> pathlib.Path:
    """Write the page of an audit's results.json.

    Args:
      results: as `jaxforget audit` leaves them.
      out: HTML file, written beside and renamed.
      title: of the page.
    """
    write_atomically(out, render(results, title))
    return pathlib.Path(out)


def render(results: Mapping[str, Any], title: str) -> str:
    """The page as HTML text; needs no network, embeds everything."""
    attacks = results["attacks"]
    models = [name for name in MODELS if any(name in each["known"] for each in attacks)]
    pictures = [svg for each in attacks for svg in curves_of(each)]
    return filled(
        "audit.html.jinja",
        title=title,
        verdict=results["verdict"],
        limits=results["limits"],
        models=models,
        attacks=[_row(each, models) for each in attacks],
        dots=dots(attacks),
        pictures=pictures,
        examples=_examples(attacks, models),
        weights=[
            (path, {key: shown(value) for key, value in row.items()})
            for path, row in (results["weights"] or {}).items()
        ],
        environment=yaml_text({key: results[key] for key in ("versions", "devices")}),
        csv=data_uri("text/csv", _csv(attacks, models)),
        json=data_uri("application/json", json.dumps(results, indent=1)),
    )


def _row(attack: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    interval = "" if attack["low"] is None else f"{attack['low']:.2f} to {attack['high']:.2f}"
    scores = sorted({name for each in attack["scores"].values() for name in each})
    return {
        **attack,
        "known": [shown(attack["known"].get(name)) for name in models],
        "left": shown(attack["left"]),
        "interval": interval,
        "scores": [
            (name, [shown(attack["scores"].get(model, {}).get(name)) for model in models])
            for name in scores
        ],
    }


def _examples(attacks: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    """Questions with the truth and what every model answered, by attack."""
    found = []
    for attack in attacks:
        rows = [attack["examples"].get(name, []) for name in models]
        for several in list(zip(*rows, strict=False))[:EXAMPLES]:
            first = several[0]
            told = {
                name: each.get("answer", "") for name, each in zip(models, several, strict=False)
            }
            entry = {"label": attack["label"], "answers": told}
            found.append(
                {**entry, "prompt": first.get("prompt", ""), "truth": first.get("truth", "")}
            )
    return found


def _csv(attacks: Sequence[Mapping[str, Any]], models: Sequence[str]) -> str:
    buffer = io.StringIO()
    columns = ["label", "threat", "budget", "measures", *models, "left", "low", "high"]
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore")
    writer.writeheader()
    for each in attacks:
        writer.writerow({**each, **each["known"]})
    return buffer.getvalue()
