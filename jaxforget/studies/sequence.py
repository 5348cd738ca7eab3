"""How forgetting holds up: request after request in one run, or over runs of more and more.

MUSE calls the first sustainability and the second scalability. Both are read from what runs have
written; nothing is computed again.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxforget.config import UnlearnConfig, load
from jaxforget.data.sources import load_records
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import RunDirectory


def sustainability(run: str | pathlib.Path) -> list[dict[str, Any]]:
    """What every request of a run left: a row a request, in order.

    Args:
      run: directory of an unlearning run with `requests` and `evaluate`.
    Returns:
      Dicts with "request" (from 1), "forgotten" (rows asked to be forgotten so far), and the
      metrics after it.
    Raises:
      UserError: no finished run, or one without several requests or without an evaluation.
    """
    config, results = _read(run)
    rows = results.get("requests")
    if not rows:
        raise UserError(f"{run}: a run of one request; to compare runs, name several")
    _refuse_empty(run, rows)
    sizes = [len(load_records(source)) for source in (config.forget, *config.requests)]
    return [
        {"request": number, "forgotten": sum(sizes[:number]), **row}
        for number, row in enumerate(rows, 1)
    ]


def scalability(runs: Sequence[str | pathlib.Path]) -> list[dict[str, Any]]:
    """What runs of forget sets of different sizes left: a row a run, the smallest set first.

    Args:
      runs: directories of unlearning runs with `evaluate`.
    Returns:
      Dicts with "run", "forgotten" (rows of all its requests), and the final metrics.
    Raises:
      UserError: no finished run, one without an evaluation, or runs of different methods.
    """
    found, methods = [], set()
    for run in runs:
        config, results = _read(run)
        _refuse_empty(run, [results["metrics"]])
        methods.add(results["method"])
        forgotten = sum(len(load_records(each)) for each in (config.forget, *config.requests))
        name = pathlib.Path(run).resolve().name
        found.append({"run": name, "forgotten": forgotten, **results["metrics"]})
    if len(methods) > 1:
        raise UserError(f"these runs differ in method: {', '.join(sorted(methods))}")
    return sorted(found, key=lambda row: row["forgotten"])


def _read(run: str | pathlib.Path) -> tuple[UnlearnConfig, Mapping[str, Any]]:
    place = RunDirectory(pathlib.Path(run))
    if not place.results.is_file() or not place.config.is_file():
        raise UserError(f"{run}: no finished run of jaxforget unlearn")
    try:
        results = json.loads(place.results.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{place.results} is damaged: {error}") from error
    return load(UnlearnConfig, place.config), results


def _refuse_empty(run: str | pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not all(rows):
        raise UserError(f"{run}: was not evaluated; give it `evaluate`")
