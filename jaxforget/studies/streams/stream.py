"""All that a run on a stream needs, and what it leaves."""

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxforget.config.stream import ContinualConfig
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.run_dir import RunDirectory
from jaxforget.engine.tree import Params
from jaxforget.models.language_model import LanguageModel
from jaxforget.strategies import Strategy


@dataclass(frozen=True)
class Task:
    """One stretch of the stream.

    Attributes:
      name: of the domain; "all" where everything is trained at once.
      ids: its examples among those of the joined set, int64.
      steps: >= 1.
      shuffled: False: its examples come in the order of `ids`.
    """

    name: str
    ids: np.ndarray
    steps: int
    shuffled: bool = True


type Measure = Callable[[Params], Any]
"""All parameters, on the devices -> what is kept of them, as JSON holds it."""


@dataclass(frozen=True)
class Stream:
    """All that a run on a stream needs.

    Attributes:
      config: of the run.
      lm: the model it starts from.
      tokenised: training examples of all tasks, joined.
      tasks: in order.
      strategy: how earlier tasks are kept.
      run: its directory.
      mesh: devices.
      row: the held-out sets' losses, called before the first task and after every one.
      look: the probe's losses, called every `config.measure.every` steps.
    """

    config: ContinualConfig
    lm: LanguageModel
    tokenised: TokenisedSet
    tasks: Sequence[Task]
    strategy: Strategy
    run: RunDirectory
    mesh: Mesh
    row: Measure
    look: Measure

    @property
    def ends(self) -> list[int]:
        """Steps of the run when each task ends; a rehearsal of the whole stream comes after."""
        return np.cumsum([task.steps for task in self.tasks]).tolist()

    @property
    def rehearsal_steps(self) -> int:
        """Of the phase after the last task."""
        rehearsal = self.strategy.rehearsal
        return rehearsal.steps if rehearsal is not None and rehearsal.every is None else 0

    def folder(self, task: int) -> pathlib.Path:
        """What is kept of a task and its boundary."""
        return self.run.path / "tasks" / str(task)


@dataclass(frozen=True)
class Streamed:
    """What training on a stream leaves.

    Attributes:
      params: to evaluate and to export, merged, on the host.
      steps: taken in all.
      seconds, tokens_per_second, step_ms, step_bytes: as of `Trained`.
    """

    params: Params
    steps: int
    seconds: float
    tokens_per_second: float | None
    step_ms: float | None
    step_bytes: int | None
