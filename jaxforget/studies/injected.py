"""Training on a corpus with facts in it, and the looks at what is known of them."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxforget.combiners import weighted_sum
from jaxforget.config.acquire import AcquireConfig
from jaxforget.data.facts import Probe
from jaxforget.data.injection import InjectedBatches, Schedule
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.stream import TRAIN
from jaxforget.engine import mesh as meshes
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically
from jaxforget.engine.optimizer import make_optimizer, make_schedule
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import MetricsStream, RunDirectory
from jaxforget.engine.state import init_state, make_state, shardings_of, state_shapes
from jaxforget.engine.train import Cadence, Progress, compile_step, train
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import State
from jaxforget.evals import fewshot_memory as memory
from jaxforget.evals.probing import probe_scorer
from jaxforget.loops import plain
from jaxforget.models.language_model import LanguageModel
from jaxforget.objectives import assemble
from jaxforget.objectives.retain import nll_part
from jaxforget.studies.inputs import step_inputs
from jaxforget.studies.training import Trained, divide
from jaxforget.studies.watch import Watch


@dataclass(frozen=True)
class Subject:
    """All that a run needs.

    Attributes:
      config: of the run.
      lm: the model it starts from.
      batches: what every update sees.
      probes: of all facts that are used.
      scored: the probes, and after them the beginnings of the texts where these are recalled.
      texts: tokens of these beginnings; empty where they are not.
      steps: updates of the run.
      run: its directory.
      mesh: devices.
      categories: of the texts, where priming is looked at.
    """

    config: AcquireConfig
    lm: LanguageModel
    batches: InjectedBatches
    probes: Sequence[Probe]
    scored: TokenisedSet
    texts: Sequence[np.ndarray]
    steps: int
    run: RunDirectory
    mesh: Mesh
    categories: Sequence[str] = ()

    @property
    def schedule(self) -> Schedule:
        """Who is presented when."""
        return self.batches.schedule

    def recalls(self, done: int) -> bool:
        """Are the texts recalled after so many updates?"""
        if self.config.recall is None:
            return False
        return done == self.schedule.start or done - self.schedule.end in self.config.recall.at

    def looks(self, done: int) -> bool:
        """Are the probes scored after so many updates?"""
        since = done - self.schedule.start
        return self.recalls(done) or (since >= 0 and since % self.config.look.every == 0)


def train_injected(
    subject: Subject, clock: Callable[[], float], listen: Callable[[Progress], None]
) -> Trained:
    """Train to the end, logging to and resuming from the run directory.

    Args:
      subject: see `Subject`.
      clock: seconds since this process began.
      listen: told of every logged step.
    Raises:
      UserError: a checkpoint of other data, or training that is not finite.
    """
    config, mesh, run = subject.config, subject.mesh, subject.run
    settings, steps = config.train, subject.steps
    trained, frozen = divide(subject.lm, config.lora, settings)
    frozen = meshes.put(frozen, meshes.shardings(frozen, mesh))
    transform, combiner = make_optimizer(config.optimizer, steps), weighted_sum({"nll": 1.0})

    def begin(params: Params) -> State:
        return init_state(params, transform, combiner, seed=settings.seed)

    shapes = state_shapes(begin, trained, mesh)
    objective = assemble({"nll": nll_part(TRAIN)}).objective
    step = plain(subject.lm.score, objective, combiner, transform, accumulate=settings.accumulate)
    compiled = compile_step(step, mesh, shardings_of(shapes))
    identity = {"fingerprint": subject.batches.fingerprint, "steps": steps}
    with Checkpoints(run.checkpoints, keep=settings.keep) as checkpoints, jax.set_mesh(mesh):
        restored, start, before = checkpoints.restore(shapes), 0, 0.0
        if restored is None:
            state = make_state(begin, trained, shapes)
        else:
            if any(restored.data.get(key) != value for key, value in identity.items()):
                raise UserError(
                    f"{run.path}: its checkpoint was made with other data, tokenizer, seed or "
                    "number of steps; choose another run_dir"
                )
            state, start, before = restored.state, restored.step, restored.data["seconds"]
        looking = _Looking(subject, frozen, start)
        if restored is None:
            looking(0, state)
        stream, watch = MetricsStream(run, resume_step=start), Watch(listen)
        watch.attach(stream, make_schedule(config.optimizer, steps))
        inputs = step_inputs(subject.batches, {}, mesh, (0, start, steps))
        try:
            state = train(
                compiled,
                state,
                frozen,
                inputs,
                Cadence(steps, settings.log_every, settings.save_every, settings.max_skipped),
                start=start,
                checkpoints=checkpoints,
                data=lambda: {**identity, "seconds": before + clock()},
                listen=watch,
                after_step=looking,
            )
        finally:
            inputs.close()
            stream.close()
    seconds = before if start == steps else round(before + clock(), 3)
    return Trained(
        merge(frozen, state.params), steps, *watch.medians(), seconds, compiled.peak_bytes
    )


class _Looking:
    """Scores the probes, and recalls the texts, after the updates where that is due."""

    def __init__(self, subject: Subject, frozen: Params, start: int) -> None:
        self.subject, self.frozen = subject, frozen
        self.file = subject.run.path / "looks.jsonl"
        rows = subject.config.look.batch_size
        self.score = probe_scorer(subject.lm.score, subject.scored, rows=rows, mesh=subject.mesh)
        # looks of a killed run after its checkpoint are taken again
        kept = [row for row in read_looks(subject.run) if row["step"] <= start]
        text = "".join(json.dumps(row) + "\n" for row in kept if start)
        on_first(lambda: write_atomically(self.file, text))

    def __call__(self, done: int, state: State) -> float:
        if not self.subject.looks(done):
            return 0.0
        params = merge(self.frozen, state.params)
        row: dict[str, Any] = {"step": done, "logp": np.round(self.score(params), 6).tolist()}
        if self.subject.recalls(done):
            assert self.subject.config.recall is not None
            size = self.subject.config.recall.batch_size
            lm, texts = self.subject.lm, self.subject.texts
            written = memory.continuations(lm, params, texts, batch_size=size)
            found = memory.recall(texts, written, lm.tokenizer)
            row["recall"] = {name: values.tolist() for name, values in found.items()}

        def write() -> None:
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")

        on_first(write)
        return 0.0


def read_looks(run: RunDirectory) -> list[dict[str, Any]]:
    """What every look has found; a last line torn by a kill is left out."""
    file, rows = run.path / "looks.jsonl", []
    for line in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
