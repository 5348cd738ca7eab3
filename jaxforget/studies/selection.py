"""Evaluations during training, and which of the models seen there is kept."""

import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory, read_metrics
from jaxforget.engine.tree import Params
from jaxforget.studies.frontier import best_of, kept_by

log = logging.getLogger(__name__)

TRADE_OFF = "trade_off"


@dataclass(frozen=True)
class Judging:
    """How a training is evaluated while it goes on.

    Attributes:
      run: its directory; rows go to evaluations.jsonl, the best model so far to best/.
      every: steps between two evaluations, >= 1.
      select: see `TrainConfig.select`; None: the last model is kept.
      judge: all parameters on the host, merged -> metrics.
      save: (the same parameters, folder) -> None.
      oracle: metrics of the oracle, or None.
    """

    run: RunDirectory
    every: int
    select: str | None
    judge: Callable[[Params], Mapping[str, Any]]
    save: Callable[[Params, pathlib.Path], None]
    oracle: Mapping[str, Any] | None = None

    def resumed(self, step: int) -> None:
        """Forget what a killed run saw after `step`: it will be seen again."""
        on_first(lambda: self._write([row for row in self.rows() if row["step"] <= step]))

    def due(self, done: int, last: int) -> bool:
        """Is the model after `done` of `last` steps evaluated? The last is where one is chosen."""
        return done % self.every == 0 and done < last or (done == last and self.select is not None)

    def look(self, done: int, params: Params) -> float:
        """Evaluate a model and keep it if it is the best so far; returns the seconds it took."""
        begin = time.perf_counter()
        row = {"step": done, **self.judge(params)}

        def keep() -> None:
            rows = [*self.rows(), row]
            self._write(rows)
            if self.select is not None and chosen(rows, self.select, self.oracle) == len(rows) - 1:
                self.save(params, self.run.best)

        on_first(keep)
        return time.perf_counter() - begin

    def rows(self) -> list[dict[str, Any]]:
        """Evaluations so far, in order of their steps."""
        return read_metrics(self.run.evaluations)

    def selected(self) -> int | None:
        """The step whose model is the best of all; None where no step has the score."""
        rows = self.rows()
        index = chosen(rows, self.select or TRADE_OFF, self.oracle)
        return None if index is None else int(rows[index]["step"])

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.run.evaluations, "".join(json.dumps(row) + "\n" for row in rows))


def chosen(
    rows: Sequence[Mapping[str, Any]], select: str, oracle: Mapping[str, Any] | None = None
) -> int | None:
    """Index of the best row, the first of equals; None where no row has the score.

    Args:
      rows: metrics of one model each.
      select: "trade_off" (see `best_of`), a metric's name (the largest is best), or the name after
        a minus (the smallest is).
      oracle: metrics of an oracle, for "trade_off".
    Raises:
      UserError: no row knows the metric.
    """
    if select == TRADE_OFF:
        return best_of(rows, kept_by(rows), oracle)
    name, sign = (select[1:], -1.0) if select.startswith("-") else (select, 1.0)
    if rows and not any(name in row for row in rows):
        allowed = ", ".join(sorted(key for key in rows[0] if key != "step"))
        raise UserError(
            f"train.select: there is no metric {name!r}. Allowed: {TRADE_OFF}, {allowed}, "
            "or one of these after a minus."
        )
    values = [row.get(name) for row in rows]
    scored = [
        (sign * value, -i)
        for i, value in enumerate(values)
        if value is not None and math.isfinite(value)
    ]
    return -max(scored)[1] if scored else None
