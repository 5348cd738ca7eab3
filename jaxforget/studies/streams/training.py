"""Training on a stream of tasks: one state, one checkpoint, boundaries that can be done again.

A checkpoint is taken after the last step of a task and before the boundary. What the boundary does
(evaluate, measure what the strategy needs, fill the memory) depends on that checkpoint alone, so a
run that is killed there does it again and goes on with the same bits.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from jaxforget.combiners import weighted_sum
from jaxforget.data.stream import StreamBatches
from jaxforget.engine import mesh as meshes
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import Schedule, make_optimizer, make_schedule
from jaxforget.engine.run_dir import MetricsStream
from jaxforget.engine.state import init_state, make_state, shardings_of, state_shapes
from jaxforget.engine.train import Cadence, CompiledStep, Progress, compile_step, train
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import State
from jaxforget.models.lora import merge_lora
from jaxforget.strategies import (
    check_stream,
    evaluated_params,
    infinite,
    make_step,
    next_task,
    prepared,
)
from jaxforget.strategies.strategy import NLL
from jaxforget.studies.common import to_host
from jaxforget.studies.inputs import step_inputs
from jaxforget.studies.streams.batches import batches_of, identity_of, shared_shapes
from jaxforget.studies.streams.boundary import (
    fold,
    keep_answers,
    keep_examples,
    measured_on,
    refuse_adapters,
    unfolded,
)
from jaxforget.studies.streams.looks import add_look, forget_looks, keep
from jaxforget.studies.streams.modules import keep_modules
from jaxforget.studies.streams.stream import Stream, Streamed
from jaxforget.studies.training import divide
from jaxforget.studies.watch import Watch

log = logging.getLogger(__name__)


def train_stream(
    stream: Stream, clock: Callable[[], float], listen: Callable[[Progress], None]
) -> Streamed:
    """Train on every task in turn, logging to and resuming from the run directory.

    Args:
      stream: see `Stream`.
      clock: seconds since this process began.
      listen: told of every logged step.
    Raises:
      UserError: what the strategy cannot do here, a stream too long for it, damaged files.
    """
    config, strategy = stream.config, stream.strategy
    check_stream(strategy, len(stream.tasks))
    refuse_adapters(strategy, config)
    schedule = learning_rate(stream)
    transform = make_optimizer(config.optimizer, schedule=schedule)
    trainer = _Trainer(stream, transform, schedule, clock, listen)
    with (
        Checkpoints(stream.run.checkpoints, keep=config.train.keep) as checkpoints,
        jax.set_mesh(stream.mesh),
    ):
        return trainer.run(checkpoints)


def learning_rate(stream: Stream) -> Schedule:
    """The learning rate of every step of the run, from 0.

    Raises:
      UserError: the parts of an infinite schedule overlap.
    """
    steps = [task.steps for task in stream.tasks]
    steps[-1] += stream.rehearsal_steps
    config, how = stream.config.optimizer, stream.config.schedule
    if isinstance(how, str):
        return make_schedule(config, *(steps if how == "per_task" else [sum(steps)]))
    total, peak = sum(steps), config.learning_rate
    if total < how.warmup + how.cooldown + how.anneal:
        raise UserError(
            f"schedule: warmup {how.warmup}, cooldown {how.cooldown} and anneal {how.anneal} are "
            f"more than the {total} steps of the stream"
        )
    return infinite(
        peak,
        peak * how.constant,
        warmup=how.warmup,
        cooldown=how.cooldown,
        anneal=(total - how.anneal, how.anneal) if how.anneal else None,
        final=peak * how.final if how.anneal else None,
    )


class _Trainer:
    """One process's pass over the stream."""

    def __init__(
        self,
        stream: Stream,
        transform: optax.GradientTransformation,
        schedule: Schedule,
        clock: Callable[[], float],
        listen: Callable[[Progress], None],
    ) -> None:
        self.stream, self.transform, self.clock = stream, transform, clock
        self.schedule = schedule
        self.config, self.strategy = stream.config, stream.strategy
        self.trained, frozen = divide(stream.lm, self.config.lora, self.config.train)
        self.frozen = self._put(frozen)
        self.watch, self.before = Watch(listen), 0.0
        self.shapes = shared_shapes(stream)
        self.programs: dict[Any, CompiledStep] = {}
        self.peak: int | None = None

    def _put(self, leaves: Params) -> Params:
        return meshes.put(leaves, meshes.shardings(leaves, self.stream.mesh))

    def run(self, checkpoints: Checkpoints) -> Streamed:
        """All tasks, from the newest checkpoint on."""
        state, start = self._begin(checkpoints)
        ends = self.stream.ends
        stream = MetricsStream(self.stream.run, resume_step=start)
        self.watch.attach(stream, self.schedule)
        try:
            for task, end in enumerate(ends):
                first = end - self.stream.tasks[task].steps
                if start > end:
                    continue
                if start <= first and task:
                    keep_answers(self.stream, task, self._all(state))
                if start < end:
                    state = self._steps(task, state, (first, max(start, first), end), checkpoints)
                state = self._task_ends(task, state)
            last = ends[-1] + self.stream.rehearsal_steps
            if start < last and self.stream.rehearsal_steps:
                state = self._steps(
                    len(ends), state, (ends[-1], max(start, ends[-1]), last), checkpoints
                )
        finally:
            stream.close()
        if self.stream.rehearsal_steps:
            keep(self.stream.run.path / "tasks" / "final.json", self._row(state))
        params = merge_lora(to_host(self._all(state)))
        seconds = round(self.before + self.clock(), 3)
        return Streamed(params, last, seconds, *self.watch.medians(), self.peak)

    def _begin(self, checkpoints: Checkpoints) -> tuple[State, int]:
        transform = self.strategy.transform(self.transform)

        def begin(params: Params) -> State:
            # the combiners of strategies carry nothing
            return init_state(
                params, transform, weighted_sum({NLL: 1.0}), seed=self.config.train.seed
            )

        shapes = state_shapes(begin, self.trained, self.stream.mesh)
        self.placed = shardings_of(shapes)
        restored = checkpoints.restore(shapes)
        if restored is None:
            state = make_state(begin, self.trained, shapes)
            forget_looks(self.stream.run, -1)  # of a run killed before its first checkpoint
            state = prepared(self.strategy, state, self.frozen)
            keep(self.stream.run.path / "tasks" / "start.json", self._row(state))
            if self.config.measure.random and self.config.model is not None:
                random = self.stream.lm.reinitialised(self.config.train.seed).params
                keep(
                    self.stream.run.path / "tasks" / "random.json",
                    self.stream.row(self._put(random)),
                )
            self._look(0, state)
            return state, 0
        self.before = restored.data.get("seconds", 0.0)
        task = int(np.searchsorted(self.stream.ends, restored.step))
        if restored.data.get("identity") != identity_of(
            self.stream, min(task, len(self.stream.tasks))
        ):
            raise UserError(
                f"{self.stream.run.path}: its checkpoint was made with other data, tokenizer or "
                "seed; choose another run_dir"
            )
        if self.strategy.fresh_adapters and 0 < task < len(self.stream.tasks):
            self._unfold(task)
        log.info("resuming after step %d, task %d", restored.step, task)
        forget_looks(self.stream.run, restored.step)
        return restored.state, restored.step

    def _all(self, state: State) -> Params:
        """All leaves to evaluate, on the devices."""
        return merge(self.frozen, evaluated_params(self.strategy, state))

    # a task

    def _steps(
        self, task: int, state: State, steps: tuple[int, int, int], checkpoints: Checkpoints
    ) -> State:
        """Steps `start` .. `end` of one task, or of the rehearsal that follows the last."""
        first, start, end = steps
        batches, heads = batches_of(self.stream, task, self.shapes)
        settings = self.config.train
        inputs = step_inputs(batches, heads, self.stream.mesh, (first, start, end))
        identity = identity_of(self.stream, task)
        compiled = self._program(task, batches, heads)
        try:
            state = train(
                compiled,
                state,
                self.frozen,
                inputs,
                Cadence(end, settings.log_every, settings.save_every, settings.max_skipped),
                start=start,
                checkpoints=checkpoints,
                data=lambda: {"identity": identity, "seconds": self.before + self.clock()},
                listen=self.watch,
                after_step=self._after_step,
            )
        finally:
            inputs.close()
        self.peak = max(filter(None, (self.peak, compiled.peak_bytes)), default=None)
        return state

    def _program(self, task: int, batches: StreamBatches, heads: Mapping[str, Any]) -> CompiledStep:
        """The compiled step; equal for tasks whose terms and shapes are."""
        after = task == len(self.stream.tasks)
        terms = tuple(self.strategy.active(task))
        shapes = tuple(sorted(batches.shapes.items()))
        key = (after, terms, shapes, tuple(sorted(heads)), self.strategy.fresh_adapters and task)
        if key not in self.programs:
            step = make_step(
                self.strategy,
                self.stream.lm.score,
                self.transform,
                task=min(task, len(self.stream.tasks) - 1),
                accumulate=self.config.train.accumulate,
                phase="rehearsal" if after else "stream",
            )
            self.programs[key] = compile_step(step, self.stream.mesh, self.placed)
        return self.programs[key]

    # boundaries

    def _task_ends(self, task: int, state: State) -> State:
        """Measure, fill the memory, and make the state with which the next task begins."""
        keep(self.stream.folder(task) / "row.json", self._row(state))
        if self.config.measure.modules:
            keep_modules(self.stream, task, merge_lora(to_host(self._all(state))))
        if task + 1 == len(self.stream.tasks) and not self.stream.rehearsal_steps:
            return state
        keep_examples(self.stream, task, self._all(state))
        state = next_task(
            self.strategy,
            state,
            measured_on(self.stream, task, (state.params, self.frozen)),
            optimizer=self.transform,
            optimizer_reset=self.config.optimizer_reset,
        )
        if self.strategy.fresh_adapters and task + 1 < len(self.stream.tasks):
            fold(self.stream, task + 1, self._all(state))
            self._unfold(task + 1)
            fresh = meshes.put(jax.tree.map(np.array, self.trained), self.placed.params)
            state = dataclasses.replace(state, params=fresh)
        return state

    def _unfold(self, task: int) -> None:
        self.trained, frozen = unfolded(self.stream, task)
        self.frozen = self._put(frozen)

    # what is measured

    def _row(self, state: State) -> Any:
        return self.stream.row(self._all(state))

    def _after_step(self, done: int, state: State) -> float:
        every = self.config.measure.every
        if every and done % every == 0:
            self._look(done, state)
        return 0.0

    def _look(self, done: int, state: State) -> None:
        if self.config.measure.every:
            row = {"step": done, "nll": self.stream.look(self._all(state))}
            add_look(self.stream.run, row)
