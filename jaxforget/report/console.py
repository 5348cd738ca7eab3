"""Live progress of a study on a terminal, or plain lines where there is none."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_SHOWN = ("loss", "forget", "retain", "nll")


@dataclass(frozen=True)
class ConsoleEvents:
    """Listeners of a study (see `jaxforget.studies.Events`) that print."""

    stage: Callable[[str], None]
    progress: Callable[[Any], None]
    counted: Callable[[str, int, int], None]


@contextlib.contextmanager
def live(console: Console) -> Iterator[ConsoleEvents]:
    """Events that draw one progress bar a stage on `console`, or print lines when it is no tty."""
    if not console.is_terminal:

        def tell(line: str) -> None:
            console.print(line, highlight=False)
            console.file.flush()  # a log file is read while the run goes on

        yield ConsoleEvents(
            stage=lambda text: tell(f"{text} ..."),
            progress=lambda p: tell(f"step {p.step}/{p.steps} {describe(p.metrics)}"),
            counted=lambda *_: None,
        )
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        transient=False,
    ) as bars:
        current: list[TaskID] = []

        def stage(text: str) -> None:
            if current:
                bars.stop_task(current[-1])
            current.append(bars.add_task(text, total=None, note=""))

        def advance(done: int, total: int, note: str) -> None:
            if not current:
                stage("working")
            bars.update(current[-1], completed=done, total=total, note=note)

        yield ConsoleEvents(
            stage=stage,
            progress=lambda p: advance(p.step, p.steps, describe(p.metrics)),
            counted=lambda what, done, total: advance(done, total, what),
        )


def describe(metrics: Any) -> str:
    """Loss terms and pace in one short line, e.g. "loss 1.2 forget 0.3 · 5,210 tok/s"."""
    terms = " ".join(f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics)
    skipped = f" · {int(metrics['skipped'])} refused" if metrics.get("skipped") else ""
    return f"{terms} · {metrics['tokens_per_second']:,.0f} tok/s{skipped}"
