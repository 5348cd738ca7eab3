"""Many settings of one training run in one compiled program: adapters or models side by side.

The step of a single run is mapped over a leading member axis; the frozen weights and, where all
members see the same data, the batches are shared.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.config import UnlearnConfig
from jaxforget.data.batches import PairedBatches, Shape
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import make_schedule
from jaxforget.engine.run_dir import MetricsStream, RunDirectory
from jaxforget.engine.train import Cadence, Progress, compile_step, train
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import State
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.common import to_host
from jaxforget.studies.inputs import (
    reference_heads,
    stacked_inputs,
    step_inputs,
)
from jaxforget.studies.member import Hyper, member_state, member_step
from jaxforget.studies.training import divide, plan_batches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Population:
    """Members of one program.

    Attributes:
      configs: of the members; equal but for `hyper`, the seed and `run_dir`, where each one's
        metrics.jsonl is written.
      hyper: dotted key -> float32 `[members]`.
      at_once: members computed side by side, the others in turns within the same program; None:
        all, but on a CPU, which gains nothing from wider arrays, 1.
    """

    configs: Sequence[UnlearnConfig]
    hyper: Mapping[str, np.ndarray]
    at_once: int | None = None

    @property
    def first(self) -> UnlearnConfig:
        """Of the members; what is equal may be read from it."""
        return self.configs[0]

    @property
    def width(self) -> int:
        """Members computed side by side."""
        narrow = 1 if jax.default_backend() == "cpu" else len(self.configs)
        return min(self.at_once or narrow, len(self.configs))

    @property
    def seeds(self) -> list[int]:
        """Of the members."""
        return [config.train.seed for config in self.configs]


@dataclass(frozen=True)
class Outcome:
    """What training leaves of a member.

    Attributes:
      params: all leaves, on the host; adapters beside their weights.
      refused: steps that changed nothing because a loss or gradient was not finite.
      failed: so were the last `train.max_skipped`: a run of its own would have stopped.
    """

    params: Params
    refused: int
    failed: bool


def train_population(
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    population: Population,
    *,
    run: RunDirectory,
    mesh: Mesh,
    listen: Callable[[Progress], None] = lambda _: None,
) -> list[Outcome]:
    """Train every member, logging to and resuming from a run directory.

    Args:
      lm: starting point.
      sets: by role, with the reference columns that the method needs.
      population: see `Population`.
      run: directory for checkpoints and what is measured of all members together.
      mesh: of the run.
      listen: told of every logged step; metrics are named `<metric>/<member>`.
    Raises:
      UserError: every member's last `train.max_skipped` steps were refused, or the checkpoints are
        of other settings.
    """
    config, settings = population.first, population.first.train
    method = methods.from_config(config.method)
    batches, steps = _planned(population, sets, method, mesh)
    leaves = [divide(lm, config.lora, each.train) for each in population.configs]
    frozen = leaves[0][1]
    state, placed, hyper = _start(population, [one for one, _ in leaves], steps, mesh)
    one = functools.partial(member_step, lm, config, steps)
    mapped = _mapped(one, population.width, shared_data=len(batches) == 1)
    compiled = compile_step(functools.partial(mapped, hyper), mesh, placed)
    heads = reference_heads(lm, method, mesh, settings.seed)
    rest = {"frozen": meshes.put(frozen, meshes.shardings(frozen, mesh)), "heads": heads}
    cadence = Cadence(steps, settings.log_every, settings.save_every, settings.max_skipped)
    identity = _identity(population, batches)
    with Checkpoints(run.checkpoints, keep=settings.keep) as checkpoints, jax.set_mesh(mesh):
        restored, start = checkpoints.restore(state), 0
        if restored is not None:
            if restored.data != identity:
                raise UserError(
                    f"{run.path}: its checkpoint is of other settings or data; choose another "
                    "run_dir or delete it"
                )
            state, start = restored.state, restored.step
            log.info("resuming after step %d of %d", start, steps)
        inputs = (
            step_inputs(batches[0], {}, mesh, (0, start, steps))
            if len(batches) == 1
            else stacked_inputs(batches, mesh, start, steps)
        )
        with _logging(population, run, start, steps) as write:

            def watch(progress: Progress) -> None:
                write(progress)
                listen(progress)

            try:
                state = train(
                    compiled,
                    state,
                    rest,
                    inputs,
                    cadence,
                    start=start,
                    checkpoints=checkpoints,
                    data=lambda: identity,
                    listen=watch,
                )
            finally:
                inputs.close()
    return _outcomes(state, frozen, settings.max_skipped)


def _start(
    population: Population, trained: Sequence[Params], steps: int, mesh: Mesh
) -> tuple[State, Any, Hyper]:
    """(state of all members, its shardings, what differs between them)."""
    hyper = {key: jnp.asarray(values) for key, values in population.hyper.items()}
    seeds = jnp.asarray(population.seeds)

    def begin(params: Params) -> State:
        return jax.vmap(lambda h, p, s: member_state(population.first, h, p, s, steps))(
            hyper, params, seeds
        )

    stacked = jax.tree.map(lambda *each: np.stack(each), *trained)
    abstract = jax.eval_shape(begin, stacked)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    log.info("%d settings: %.1f MiB of state", len(trained), size / 2**20)
    placed = _stacked_shardings(abstract, mesh)
    state = jax.jit(begin, out_shardings=placed)(meshes.put(stacked, placed.params))
    return state, placed, hyper


def _identity(population: Population, batches: Sequence[PairedBatches]) -> dict[str, Any]:
    """What a checkpoint must be of to be resumed from."""
    settings = json.dumps([configs.identity(each) for each in population.configs])
    return {
        "fingerprint": [each.fingerprint for each in batches],
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
    }


@contextlib.contextmanager
def _logging(
    population: Population, run: RunDirectory, start: int, steps: int
) -> Iterator[Callable[[Progress], None]]:
    """Writes each member's scalars to its own directory, those of all together to `run`."""
    folders = [RunDirectory(pathlib.Path(each.run_dir).absolute()) for each in population.configs]
    rates = [make_schedule(each.optimizer, steps) for each in population.configs]
    with contextlib.ExitStack() as stack:

        def opened(folder: RunDirectory) -> MetricsStream:
            stream = MetricsStream(folder, resume_step=start)
            stack.callback(stream.close)
            return stream

        streams, together = [opened(each) for each in folders], opened(run)

        def write(progress: Progress) -> None:
            rows: list[dict[str, float]] = [
                {"learning_rate": float(rate(progress.step - 1))} for rate in rates
            ]
            shared = {}
            for name, value in progress.metrics.items():
                own, of, member = name.rpartition("/")
                if of:
                    rows[int(member)][own] = value
                else:
                    shared[name] = value
            for stream, row in zip(streams, rows, strict=True):
                stream.write(progress.step, row)
            together.write(progress.step, shared)

        yield write


def _outcomes(state: State, frozen: Params, max_skipped: int) -> list[Outcome]:
    final, skips = to_host(state.params), to_host(dataclasses.asdict(state.skips))

    def one(member: int) -> Outcome:
        own = jax.tree.map(lambda leaf: leaf[member], final)
        return Outcome(
            merge(frozen, own),
            int(skips["total"][member]),
            bool(skips["in_a_row"][member] >= max_skipped),
        )

    return [one(member) for member in range(len(skips["total"]))]


def _mapped(one: Callable[..., Any], at_once: int, *, shared_data: bool) -> Callable[..., Any]:
    """A step of one member -> of all, `at_once` of them side by side and the rest in turns."""

    def all_members(hyper: Any, state: Any, rest: Any, rows: Any, reference: Any) -> Any:
        own, shared = (hyper, state), (rows, reference)
        if not shared_data:
            own, shared = (*own, *shared), ()

        def member(mine: tuple[Any, ...]) -> Any:
            h, s, *data = (*mine, *shared)
            return one(h, s, rest, *data)

        return jax.lax.map(member, own, batch_size=None if at_once == 1 else at_once)

    return all_members


def _planned(
    population: Population, sets: Mapping[str, TokenisedSet], method: Method, mesh: Mesh
) -> tuple[list[PairedBatches], int]:
    """Batches of every member, or one for all where the seeds are equal; of common shapes."""
    chosen = {role: sets[role] for role in method.needs.roles}
    seeds = population.seeds if len(set(population.seeds)) > 1 else population.seeds[:1]
    settings = population.first.train
    planned, steps = [], 0
    length = settings.row_length
    for seed in seeds:
        own = dataclasses.replace(settings, seed=seed, row_length=length)
        batches, steps = plan_batches(chosen, own, mesh, method.needs.aligned)
        length = batches.length
        planned.append(batches)
    shapes = {
        role: Shape(
            *(
                max(getattr(each.shapes[role], field.name) for each in planned if each.shapes)
                for field in dataclasses.fields(Shape)
            )
        )
        for role in chosen
    }
    return [dataclasses.replace(each, shapes=shapes) for each in planned], steps


def _stacked_shardings(state: Any, mesh: Mesh) -> Any:
    """Every member's leaves as a single run has them; the member axis is not divided."""
    single = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state)
    placed = meshes.shardings(single, mesh)
    return jax.tree.map(lambda each: NamedSharding(mesh, P(None, *each.spec)), placed)
