"""Where the progress of a run goes while it trains, and how fast it was."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxforget.engine.run_dir import MetricsStream
from jaxforget.engine.train import Progress


class Watch:
    """Passes progress on, to the metrics file and the listener, and remembers the pace."""

    def __init__(self, listen: Callable[[Progress], None]) -> None:
        self._listen, self._pace = listen, []

    def attach(self, stream: MetricsStream, schedule: Callable[[Any], Any]) -> None:
        """Where rows go, and the learning rate of each step (from 0)."""
        self._stream, self._schedule = stream, schedule

    def __call__(self, progress: Progress) -> None:
        """One logged step."""
        rate = float(self._schedule(progress.step - 1))
        row = {**progress.metrics, "learning_rate": rate}
        self._stream.write(progress.step, row)
        self._pace.append((row["tokens_per_second"], row["step_ms"]))
        self._listen(Progress(progress.step, progress.steps, row))

    def medians(self) -> tuple[float | None, float | None]:
        """(tokens per second, milliseconds of a step) of this process, without the first row."""
        pace = self._pace[1:] or self._pace
        if not pace:
            return None, None
        rates, times = zip(*pace, strict=True)
        return float(np.median(rates)), float(np.median(times))
