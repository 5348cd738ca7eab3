"""How far each module moved in a task, and how specialised its matrix is after it."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxforget.engine.files import write_atomically
from jaxforget.engine.processes import on_first
from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.strategies import condition_numbers, module_changes
from jaxforget.studies.stored import read_arrays
from jaxforget.studies.streams.looks import keep
from jaxforget.studies.streams.stream import Stream

WEIGHTS = "weights.npz"


def keep_modules(stream: Stream, task: int, params: Params) -> None:
    """Write what `measure.modules` asks for when a task has ended.

    The weights at its end stay in a file until the next but one, since a killed run measures again.

    Args:
      stream: of the run.
      task: that has ended, from 0.
      params: all leaves, merged, on the host.
    """
    asked = stream.config.measure.modules
    found: dict[str, Any] = {}
    if "change" in asked:
        before = stream.lm.params
        if task:
            before = unflatten(read_arrays(stream.folder(task - 1) / WEIGHTS))
        found["change"] = _lists(module_changes(before, params))
        if task + 1 < len(stream.tasks):
            on_first(lambda: _write(stream, task, params))
        if task > 1:
            on_first(lambda: (stream.folder(task - 2) / WEIGHTS).unlink(missing_ok=True))
    if "condition" in asked:
        found["condition"] = _lists(condition_numbers(params))
    if found:
        keep(stream.folder(task) / "modules.json", found)


def _lists(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """By path; of leaves stacked over layers a list. What is not finite becomes null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    found: dict[str, Any] = {}
    for path, values in numbers.items():
        whole = np.asarray(values, np.float64).tolist()
        found[path] = [*map(number, whole)] if isinstance(whole, list) else number(whole)
    return found


def _write(stream: Stream, task: int, params: Params) -> None:
    buffer = io.BytesIO()
    leaves = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params).items()}
    np.savez(buffer, allow_pickle=False, **leaves)
    stream.folder(task).mkdir(parents=True, exist_ok=True)
    write_atomically(stream.folder(task) / WEIGHTS, buffer.getvalue())
