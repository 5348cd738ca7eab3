"""The run directory: what every run leaves behind, and who may write to it."""

import fcntl
import json
import logging
import pathlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import jax

from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run.

    Attributes:
      path: the directory itself.
    """

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """Resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> pathlib.Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> pathlib.Path:
        """Final metrics, versions, devices."""
        return self.path / "results.json"

    @property
    def examples(self) -> pathlib.Path:
        """One JSON object an evaluated example, with all its values."""
        return self.path / "examples.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        """Orbax checkpoints of the training state."""
        return self.path / "checkpoints"

    @property
    def model(self) -> pathlib.Path:
        """The exported model, a Hugging Face folder."""
        return self.path / "model"

    @property
    def evaluations(self) -> pathlib.Path:
        """One JSON object an evaluation during training."""
        return self.path / "evaluations.jsonl"

    @property
    def best(self) -> pathlib.Path:
        """The best model that was evaluated during training, a Hugging Face folder."""
        return self.path / "best"

    @property
    def cache(self) -> pathlib.Path:
        """Tokens, reference scores and compiled programs; may be deleted at any time."""
        return self.path / "cache"

    @property
    def updates(self) -> pathlib.Path:
        """What recorded steps did to the weights."""
        return self.path / "updates"

    @property
    def report(self) -> pathlib.Path:
        """Self-contained HTML page."""
        return self.path / "report.html"

    @property
    def log(self) -> pathlib.Path:
        """Messages of the run."""
        return self.path / "log.txt"

    def request(self, index: int) -> "RunDirectory":
        """Where the model and the results after request `index` (from 0) of several are kept."""
        return RunDirectory(self.path / "requests" / str(index))

    def begun(self) -> bool:
        """Is there anything that took work: results, or a complete checkpoint?"""
        saved = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return self.results.exists() or any(entry.name.isdigit() for entry in saved)


def open_run(path: str | pathlib.Path, *, resume: str) -> RunDirectory:
    """Make the directory, or accept an existing one when `resume` allows.

    Args:
      path: of the run.
      resume: "auto" continues what is there; "never" refuses a directory that holds a run.
    Raises:
      UserError: it holds a run and `resume` is "never"; or it cannot be made.
    """
    run = RunDirectory(pathlib.Path(path).absolute())
    if run.config.exists() and resume == "never":
        raise UserError(f"{path} already holds a run; choose another run_dir, or resume=auto")
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir: cannot make {path}: {error.strerror}") from error
    return run


def lock(run: RunDirectory) -> IO[str]:
    """Hold the directory for this process until the returned file is closed.

    Raises:
      UserError: another process holds it, or it cannot be written or locked.
    """
    try:
        handle = (run.path / ".lock").open("w")
    except OSError as error:
        raise UserError(f"run_dir: cannot write in {run.path}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        if not isinstance(error, BlockingIOError):
            raise UserError(f"run_dir: cannot lock {run.path}: {error.strerror}") from error
        raise UserError(
            f"{run.path} is in use by another process; wait for it or choose another run_dir"
        ) from None
    return handle


def write_config(
    run: RunDirectory, text: str, comparable: str, defaults: Mapping[str, Any] | None = None
) -> None:
    """Record the configuration, or check that it is the one this directory was made with.

    Args:
      run: the directory.
      text: resolved YAML.
      comparable: JSON of only what decides the numbers; must equal the recorded one on resume.
      defaults: what options meant that the recorded configuration, of an older version, lacks.
    Raises:
      UserError: the directory was made with another configuration; names the keys that differ.
    """
    identity = run.path / ".identity.json"
    if identity.exists() and run.begun():
        try:
            old = json.loads(identity.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{identity} is damaged ({error}), so this run cannot be resumed; choose another "
                "run_dir or delete it"
            ) from None
        new = json.loads(comparable)
        different = sorted(_differences(_completed(old, new, defaults or {}), new))
        if different:
            raise UserError(
                f"{run.path} holds a run with another configuration ({', '.join(different)}); "
                "choose another run_dir or delete it"
            )
    write_atomically(run.config, text)
    write_atomically(identity, comparable)


def _completed(old: Any, new: Any, defaults: Any) -> Any:
    """`old` with the options of `new` that it lacks at their defaults."""
    if not all(isinstance(each, Mapping) for each in (old, new, defaults)):
        return old
    lacking = {key: defaults[key] for key in new if key not in old and key in defaults}
    known = {key: _completed(each, new.get(key), defaults.get(key)) for key, each in old.items()}
    return {**lacking, **known}


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [f"{prefix.rstrip('.')}: {old!r} -> {new!r}"]
    found = []
    for key in sorted(set(old) | set(new)):
        found += _differences(old.get(key), new.get(key), f"{prefix}{key}.")
    return found


class MetricsStream:
    """Appends rows to metrics.jsonl, and to TensorBoard events where tensorboardX is installed."""

    def __init__(self, run: RunDirectory, *, resume_step: int = 0):
        """Opens the stream; rows after `resume_step` (of a killed run) are dropped first."""
        self._file: IO[str] | None = None
        self._board = None
        if jax.process_index() != 0:
            return
        rows = [row for row in read_metrics(run.metrics) if row["step"] <= resume_step]
        write_atomically(run.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = run.metrics.open("a")
        self._board = _tensorboard(run.path / "tensorboard")

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """One line with `step`, `time` (unix seconds) and the scalars of `row`."""
        if self._file is None:
            return
        values = {name: _plain(value) for name, value in row.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close every sink."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a last line torn by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def write_results(run: RunDirectory, results: Mapping[str, Any]) -> None:
    """results.json, written beside and renamed, by the first process only."""
    if jax.process_index() == 0:
        write_json(run.results, results)


def _plain(value: Any) -> float | str | None:
    number = float(value)
    # JSON has no NaN: a refused step's loss is logged as text
    return number if number == number and abs(number) != float("inf") else str(number)


def _tensorboard(folder: pathlib.Path) -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return SummaryWriter(str(folder))
