"""The host loop: dispatch steps, fetch metrics one step late, save, stop when asked.

Nothing here waits for the device except to log, to save, and at the end.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.mesh import replicated
from jaxforget.engine.runtime import compiler_options, trim_freed_memory
from jaxforget.engine.step import Step
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Batches, Metrics, Reference, State

log = logging.getLogger(__name__)

ALERT = "alert_"
"""Of scalars that are warned of, once, where they are above 0: `alert_forgetting_reverses`."""


@dataclass(frozen=True)
class Inputs:
    """What one step consumes, already on the devices.

    Attributes:
      batches: by role.
      reference: by role; empty where the objective needs none.
      tokens: useful (not padding) tokens of all roles, for throughput.
    """

    batches: Batches
    reference: Reference
    tokens: int


@dataclass(frozen=True)
class Cadence:
    """How often the host acts.

    Attributes:
      steps: total steps of the run.
      log_every: steps between logged rows.
      save_every: steps between checkpoints; 0: only the last.
      max_skipped: refused steps in a row after which the run stops.
    """

    steps: int
    log_every: int = 10
    save_every: int = 0
    max_skipped: int = 10


@dataclass(frozen=True)
class Progress:
    """What a listener is told at every logged step.

    Attributes:
      step: steps taken.
      steps: total.
      metrics: scalars of that step, plus `tokens_per_second` and `step_ms` (mean of the interval).
    """

    step: int
    steps: int
    metrics: Mapping[str, float]


class CompiledStep:
    """A step as one program, made at its first call for the shapes that it is given then.

    Attributes:
      peak_bytes: of one device while the program runs: state, frozen leaves, inputs, results and
        temporaries; None before the first call, or where the backend does not say.
    """

    def __init__(self, jitted: Any) -> None:
        self._jitted, self._program = jitted, None
        self.peak_bytes: int | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the step returns."""
        if self._program is None:
            self._program = self.program(*arguments)
            self.peak_bytes = _bytes_of(self._program.memory_analysis())
            trim_freed_memory()
        return self._program(*arguments)

    def program(self, *arguments: Any) -> Any:
        """The program for such arguments, which may be shapes that say where they lie."""
        return self._jitted.lower(*arguments).compile()


def _bytes_of(memory: Any) -> int | None:
    if memory is None:
        return None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(held - memory.alias_size_in_bytes + memory.temp_size_in_bytes)


def compile_step(step: Step, mesh: Mesh, placed: Any) -> CompiledStep:
    """A step as one program: state donated, its sharding kept, metrics replicated.

    Args:
      step: pure function.
      mesh: of the run.
      placed: shardings of the state.
    """
    jitted = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(placed, replicated(mesh)),
        compiler_options=compiler_options(),
    )
    return CompiledStep(jitted)


def train(
    compiled: Callable[..., tuple[State, Metrics]],
    state: State,
    frozen: Params,
    inputs: Iterator[Inputs],
    cadence: Cadence,
    *,
    start: int = 0,
    checkpoints: Checkpoints | None = None,
    data: Callable[[], Mapping[str, Any]] = dict,
    listen: Callable[[Progress], None] = lambda _: None,
    after_step: Callable[[int, State], float] | None = None,
) -> State:
    """Run steps `start` .. `cadence.steps`.

    Args:
      compiled: see `compile_step`.
      state: donated.
      frozen: leaves that are not trained.
      inputs: yields one `Inputs` a step, beginning at `start`.
      cadence: see `Cadence`.
      start: steps already taken.
      checkpoints: where to save; None: nowhere.
      data: called at each checkpoint for what is saved with it (identifies the data order).
      listen: called at every logged step.
      after_step: called with (steps taken, state) after every dispatch; must not keep the state;
        returns seconds that are no part of the training.
    Returns:
      The state after the last step.
    Raises:
      UserError: `cadence.max_skipped` steps in a row were not finite.
    """
    meter, pending, warned = _Meter(), None, set()
    finished = time.perf_counter()  # when the last logged step was
    with ThreadPoolExecutor(1) as watch:
        for done in range(start + 1, cadence.steps + 1):
            item = next(inputs)
            state, metrics = compiled(state, frozen, item.batches, item.reference)
            meter.add(item.tokens)
            if pending is not None:
                finished = _report(pending, finished, cadence, listen, warned)
                pending = None
            if done % cadence.log_every == 0 or done in (1, cadence.steps):
                pending = _Pending(done, metrics, meter, watch.submit(_when_ready, metrics))
                meter = _Meter()
            if after_step is not None:
                meter.apart += after_step(done, state)
            due = cadence.save_every and done % cadence.save_every == 0
            if checkpoints is not None and (due or done == cadence.steps):
                if pending is not None:  # never save past a run that must stop
                    finished = _report(pending, finished, cadence, listen, warned)
                    pending = None
                checkpoints.save(done, state, dict(data()))
        if pending is not None:
            _report(pending, finished, cadence, listen, warned)
    if checkpoints is not None:
        checkpoints.wait()
    return jax.block_until_ready(state)


class _Meter:
    """Tokens and steps since the last logged step, and seconds that are no part of them."""

    def __init__(self) -> None:
        self.tokens, self.steps, self.apart = 0, 0, 0.0

    def add(self, tokens: int) -> None:
        self.tokens += tokens
        self.steps += 1


class _Pending(NamedTuple):
    """A step that was dispatched and is to be logged."""

    step: int
    metrics: Metrics
    meter: _Meter
    finished: Future[float]


def _when_ready(metrics: Metrics) -> float:
    """Seconds of the clock when a step has ended, however far ahead the host is."""
    jax.block_until_ready(metrics)
    return time.perf_counter()


def _report(
    pending: _Pending,
    begin: float,
    cadence: Cadence,
    listen: Callable[[Progress], None],
    warned: set[str],
) -> float:
    """Log a step; when it ended. `begin`: when the logged step before it did."""
    step, metrics, meter, ready = pending
    values: dict[str, float] = {}
    for name, value in jax.device_get(metrics).items():
        array = np.asarray(value)
        if array.ndim:  # one of every member of a population
            values |= {f"{name}/{member}": float(one) for member, one in enumerate(array)}
        else:
            values[name] = float(array)
    finished = ready.result()
    seconds = max(finished - begin - meter.apart, 1e-9)
    values["tokens_per_second"] = meter.tokens / seconds
    values["step_ms"] = 1e3 * seconds / meter.steps
    listen(Progress(step, cadence.steps, values))
    for name, value in values.items():
        if name.startswith(ALERT) and value > 0 and name not in warned:
            warned.add(name)
            log.warning("step %d: %s", step, name.removeprefix(ALERT).replace("_", " "))
    if values.get("skipped_in_a_row", 0) >= cadence.max_skipped:
        raise UserError(
            f"stopped at step {step}: the last {int(values['skipped_in_a_row'])} steps had a loss "
            "or gradient that is not finite and were refused (parameters are unharmed). Lower "
            "optimizer.learning_rate or the forget weight, or compute in float32."
        )
    return finished
