"""What is measured while a stream is trained, and the files that keep it."""

import contextlib
import json
import pathlib
from typing import Any

from jaxforget.engine.files import write_atomically, write_json
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory


def keep(file: pathlib.Path, found: Any) -> None:
    """Write what was measured as JSON, beside and renamed."""

    def write() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)

    on_first(write)


def add_look(run: RunDirectory, row: dict[str, Any]) -> None:
    """One more line of `looks.jsonl`."""

    def write() -> None:
        with _file(run).open("a") as file:
            file.write(json.dumps(row) + "\n")

    on_first(write)


def forget_looks(run: RunDirectory, step: int) -> None:
    """Those of a killed run after its checkpoint will be taken again."""

    def cut() -> None:
        rows = [row for row in read_looks(run) if row["step"] <= step]
        write_atomically(_file(run), "".join(json.dumps(row) + "\n" for row in rows))

    on_first(cut)


def read_looks(run: RunDirectory) -> list[dict[str, Any]]:
    """The probe's losses by step; a last line torn by a kill is left out."""
    file, rows = _file(run), []
    for line in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _file(run: RunDirectory) -> pathlib.Path:
    return run.path / "looks.jsonl"
