"""Training on a stream of tasks: one state, one checkpoint, boundaries that can be done again.

A checkpoint is taken after the last step of a task and before the boundary. What the boundary does
(evaluate, measure what the strategy needs, fill the memory) depends on that checkpoint alone, so a
run that is killed there does it again and goes on with the same bits.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxforget.combiners import weighted_sum
from jaxforget.config.stream import ContinualConfig
from jaxforget.data import memory as memories
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.stream import TRAIN, Draws, StreamBatches, chosen, planned
from jaxforget.engine import mesh as meshes
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically, write_json
from jaxforget.engine.optimizer import make_optimizer, make_schedule
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import MetricsStream, RunDirectory
from jaxforget.engine.state import init_state
from jaxforget.engine.train import Cadence, CompiledStep, Progress, compile_step, train
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import State
from jaxforget.models.language_model import LanguageModel, load
from jaxforget.models.lora import merge_lora
from jaxforget.strategies import (
    Strategy,
    check_stream,
    evaluated_params,
    make_step,
    next_task,
    prepared,
)
from jaxforget.strategies.strategy import NLL
from jaxforget.studies.common import to_host
from jaxforget.studies.inputs import step_inputs
from jaxforget.studies.material import material
from jaxforget.studies.stored import (
    Stored,
    losses_of,
    previous_answers,
    read_stored,
    stored_answers,
)
from jaxforget.studies.training import Watch, divide

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One stretch of the stream.

    Attributes:
      name: of the domain; "all" where everything is trained at once.
      ids: its examples among those of the joined set, int64.
      steps: >= 1.
    """

    name: str
    ids: np.ndarray
    steps: int


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
    _refuse_adapters(strategy, config)
    transform = _optimizer(stream)
    trainer = _Trainer(stream, transform, clock, listen)
    with (
        Checkpoints(stream.run.checkpoints, keep=config.train.keep) as checkpoints,
        jax.set_mesh(stream.mesh),
    ):
        return trainer.run(checkpoints)


def _optimizer(stream: Stream) -> optax.GradientTransformation:
    return make_optimizer(stream.config.optimizer, *_stretches(stream))


def _stretches(stream: Stream) -> list[int]:
    """Steps of each pass through the learning rate's schedule."""
    steps = [task.steps for task in stream.tasks]
    steps[-1] += stream.rehearsal_steps
    return steps if stream.config.schedule == "per_task" else [sum(steps)]


def _refuse_adapters(strategy: Strategy, config: ContinualConfig) -> None:
    if strategy.fresh_adapters and config.lora is None:
        raise UserError(f"strategy: {strategy.name} trains adapters; set lora.rank")


class _Trainer:
    """One process's pass over the stream."""

    def __init__(
        self,
        stream: Stream,
        transform: optax.GradientTransformation,
        clock: Callable[[], float],
        listen: Callable[[Progress], None],
    ) -> None:
        self.stream, self.transform, self.clock = stream, transform, clock
        self.config, self.strategy = stream.config, stream.strategy
        self.trained, frozen = divide(stream.lm, self.config.lora, self.config.train)
        self.frozen = self._put(frozen)
        self.watch, self.before = Watch(listen), 0.0
        self.programs: dict[Any, CompiledStep] = {}
        self.peak: int | None = None

    def _put(self, leaves: Params) -> Params:
        return meshes.put(leaves, meshes.shardings(leaves, self.stream.mesh))

    def run(self, checkpoints: Checkpoints) -> Streamed:
        """All tasks, from the newest checkpoint on."""
        state, start = self._begin(checkpoints)
        ends = self.stream.ends
        stream = MetricsStream(self.stream.run, resume_step=start)
        self.watch.attach(stream, make_schedule(self.config.optimizer, *_stretches(self.stream)))
        try:
            for task, end in enumerate(ends):
                first = end - self.stream.tasks[task].steps
                if start > end:
                    continue
                if start <= first and task:
                    state = self._task_begins(task, state)
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
            _kept(self.stream.run.path / "tasks" / "final.json", self._row(state))
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

        self.placed = meshes.shardings(jax.eval_shape(begin, self.trained), self.stream.mesh)
        copies = meshes.put(jax.tree.map(np.array, self.trained), self.placed.params)
        state = jax.jit(begin, out_shardings=self.placed)(copies)
        restored = checkpoints.restore(state)
        if restored is None:
            self._forget_looks(-1)  # of a run that was killed before its first checkpoint
            state = prepared(self.strategy, state, self.frozen)
            _kept(self.stream.run.path / "tasks" / "start.json", self._row(state))
            self._look(0, state)
            return state, 0
        self.before = restored.data.get("seconds", 0.0)
        task = int(np.searchsorted(self.stream.ends, restored.step))
        if restored.data.get("identity") != self._identity(min(task, len(self.stream.tasks))):
            raise UserError(
                f"{self.stream.run.path}: its checkpoint was made with other data, tokenizer or "
                "seed; choose another run_dir"
            )
        if self.strategy.fresh_adapters and 0 < task < len(self.stream.tasks):
            self._unfold(task)
        log.info("resuming after step %d, task %d", restored.step, task)
        self._forget_looks(restored.step)
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
        batches, heads = self._batches(task)
        settings = self.config.train
        inputs = step_inputs(batches, heads, self.stream.mesh, (first, start, end))
        identity = self._identity(task)
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
        shapes = (batches.length, tuple(sorted(batches.shapes.items())))
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

    def _batches(self, task: int) -> tuple[StreamBatches, Mapping[str, Any]]:
        """Batches of a task, and the heads of the models that its references are of."""
        sets, heads = self._sets(task)
        draws = self._draws(task, sets)
        multiple = meshes.row_shards(self.stream.mesh) * self.config.train.accumulate
        steps = (
            self.stream.tasks[task].steps
            if task < len(self.stream.tasks)
            else self.stream.rehearsal_steps
        )
        (found,) = planned(
            sets, [(draws, steps)], length=self.config.train.row_length, row_multiple=multiple
        )
        return found, heads

    def _sets(self, task: int) -> tuple[dict[str, TokenisedSet], dict[str, Any]]:
        sets: dict[str, TokenisedSet] = {TRAIN: self.stream.tokenised}
        heads: dict[str, Any] = {}
        references = self.strategy.references(min(task, len(self.stream.tasks) - 1))
        kept = self._memory(task)
        for role in self._roles(task):
            if role == TRAIN:
                continue
            if role.startswith("memory_"):
                sets[role] = kept[int(role.removeprefix("memory_"))].of(self.stream.tokenised)
            else:
                stored = role in references and references[role][0] == "stored"
                sets[role] = _together(kept, self.stream.tokenised, stored)
        if TRAIN in references and references[TRAIN][0] == "previous":
            if self.config.memory.share:
                raise UserError(
                    f"strategy: {self.strategy.name} caches the previous model's answers to the "
                    'new task alone; set its teacher to "live" or memory.share to 0'
                )
            own = chosen(self.stream.tokenised, self.stream.tasks[task].ids)
            sets[TRAIN], heads[TRAIN] = previous_answers(
                self.stream.folder(task) / "previous.npz", own
            )
        return sets, heads

    def _roles(self, task: int) -> tuple[str, ...]:
        if task < len(self.stream.tasks):
            return self.strategy.roles(task)
        assert self.strategy.rehearsal is not None
        terms = self.strategy.rehearsal.terms.values()
        return tuple(dict.fromkeys(role for term in terms for role in term.part.roles))

    def _draws(self, task: int, sets: Mapping[str, TokenisedSet]) -> Draws:
        settings, memory = self.config.train, self.config.memory
        count = memory.batch_size or settings.batch_size
        roles = {r: (np.arange(len(s)), count) for r, s in sets.items() if r != TRAIN}
        own = self.stream.tasks[min(task, len(self.stream.tasks) - 1)].ids
        if sets[TRAIN] is not self.stream.tokenised:  # a set of the task alone
            own = np.arange(len(own))
        ids = [each.ids for each in self._memory(task)] if memory.share else []
        old = np.concatenate([np.zeros(0, np.int64), *ids])
        return Draws(own, old, settings.batch_size, (settings.seed, task), memory.share, roles)

    def _memory(self, task: int) -> list[Stored]:
        """What is kept of the tasks before; of the first one itself where there is none yet."""
        done = min(task, len(self.stream.tasks))
        if not done:
            order = memories.order_of(self.stream.tasks[0].ids, (self.config.train.seed, 0))
            return [Stored(order[0][: self.config.memory.size], order[1], {})]
        ended = [read_stored(self.stream.folder(each) / "memory.npz") for each in range(done)]
        orders = [(each.ids, each.keys) for each in ended]
        ids = memories.kept(orders, self.config.memory.size, self.config.memory.kind)
        return [each.only(some) for each, some in zip(ended, ids, strict=True) if len(some)]

    def _identity(self, task: int) -> str:
        """Of the data, the seed and everything else that decides what this task's steps see."""
        parts = [self.stream.tokenised.fingerprint, str(self.config.train.seed), str(task)]
        parts += [str((each.name, each.steps, len(each.ids))) for each in self.stream.tasks]
        return " ".join(parts)

    # boundaries

    def _task_begins(self, task: int, state: State) -> State:
        """What has to be known of the model before a task that is not the first."""
        references = self.strategy.references(task)
        if TRAIN in references and references[TRAIN][0] == "previous":
            own = chosen(self.stream.tokenised, self.stream.tasks[task].ids)
            file = self.stream.folder(task) / "previous.npz"
            stored_answers(file, self.stream.lm, self._all(state), own, {"hidden"}, head=True)
        return state

    def _task_ends(self, task: int, state: State) -> State:
        """Measure, fill the memory, and make the state with which the next task begins."""
        folder = self.stream.folder(task)
        _kept(folder / "row.json", self._row(state))
        if task + 1 == len(self.stream.tasks) and not self.stream.rehearsal_steps:
            return state
        self._store(task, state)
        found = None
        if self.strategy.guard.measure is not None:
            leaves = (state.params, self.frozen)
            own = chosen(self.stream.tokenised, self.stream.tasks[task].ids)
            sets = {TRAIN: own}
            found = material(self.stream.lm, leaves, sets, self.config.train, self.stream.mesh)
        state = next_task(
            self.strategy,
            state,
            found,
            optimizer=self.transform,
            optimizer_reset=self.config.optimizer_reset,
        )
        if self.strategy.fresh_adapters and task + 1 < len(self.stream.tasks):
            state = self._fold(task + 1, state)
        return state

    def _store(self, task: int, state: State) -> None:
        """Which examples of a task are kept, and what the model answers to them."""
        own, size = self.stream.tasks[task].ids, self.config.memory.size
        losses = None
        if self.config.memory.kind == "hardest":
            examples = chosen(self.stream.tokenised, own)
            losses = losses_of(self.stream.lm, self._all(state), examples)
        ids, keys = memories.order_of(own, (self.config.train.seed, task), losses)
        stored_answers(
            self.stream.folder(task) / "memory.npz",
            self.stream.lm,
            self._all(state),
            chosen(self.stream.tokenised, ids[:size]),
            self._stored_fields(),
            ids=ids[:size],
            keys=keys[:size],
        )

    def _stored_fields(self) -> set[str]:
        """What of the model's answers has to be stored with an example."""
        found = self.strategy.references(len(self.stream.tasks) - 1).values()
        fields = {field for source, some in found for field in some if source == "stored"}
        if "hidden" in fields:
            raise UserError(
                f"strategy: {self.strategy.name}: hidden states need the head of the model of "
                'every task; store "top" or "target" instead'
            )
        return fields

    def _fold(self, task: int, state: State) -> State:
        """Adapters into the weights, and new ones for the next task."""
        whole = dataclasses.replace(self.stream.lm, params=merge_lora(to_host(self._all(state))))
        folder = self.stream.folder(task) / "start"
        on_first(lambda: whole.save_pretrained(folder, dtype=self.config.dtype))
        self._unfold(task)
        fresh = meshes.put(jax.tree.map(np.array, self.trained), self.placed.params)
        return dataclasses.replace(state, params=fresh)

    def _unfold(self, task: int) -> None:
        """The weights that a task's adapters stand beside."""
        base = load(self.stream.folder(task) / "start", dtype=self.config.dtype)
        lm = dataclasses.replace(self.stream.lm, params=base.params)
        seed = self.config.train.seed + task
        settings = dataclasses.replace(self.config.train, seed=seed)
        self.trained, frozen = divide(lm, self.config.lora, settings)
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
        if not self.config.measure.every:
            return
        row = {"step": done, "nll": self.stream.look(self._all(state))}

        def write() -> None:
            with self._looks.open("a") as file:
                file.write(json.dumps(row) + "\n")

        on_first(write)

    @functools.cached_property
    def _looks(self) -> pathlib.Path:
        return self.stream.run.path / "looks.jsonl"

    def _forget_looks(self, step: int) -> None:
        """Those of a killed run after its checkpoint will be taken again."""

        def cut() -> None:
            rows = [row for row in read_looks(self.stream.run) if row["step"] <= step]
            write_atomically(self._looks, "".join(json.dumps(row) + "\n" for row in rows))

        on_first(cut)


def read_looks(run: RunDirectory) -> list[dict[str, Any]]:
    """The probe's losses by step; a last line torn by a kill is left out."""
    file, rows = run.path / "looks.jsonl", []
    for line in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _kept(file: pathlib.Path, found: Any) -> None:
    def write() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)

    on_first(write)


def _together(kept: Sequence[Stored], tokenised: TokenisedSet, with_answers: bool) -> TokenisedSet:
    """All that is kept as one set, with what was answered where a term compares with it."""
    ids = np.concatenate([each.ids for each in kept])
    whole = chosen(tokenised, ids)
    if not with_answers:
        return whole
    names = kept[0].columns
    return whole.with_columns(
        **{name: np.concatenate([each.columns[name] for each in kept]) for name in names}
    )
