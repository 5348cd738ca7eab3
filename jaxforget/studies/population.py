"""Many settings of one training run in one compiled program: adapters or models side by side.

The step of a single run is mapped over a leading member axis; the frozen weights and, where all
members see the same data, the batches are shared.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxforget import methods
from jaxforget.config import UnlearnConfig
from jaxforget.data.batches import PairedBatches, in_common, prefetch
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import MetricsStream, RunDirectory
from jaxforget.engine.train import Cadence, Inputs, Progress, compile_step, train
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import State
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.batches import plan_batches
from jaxforget.studies.inputs import joined, reference_heads
from jaxforget.studies.training import divide, first_state, step_of, transform_of

log = logging.getLogger(__name__)

SCALARS = ("optimizer.learning_rate", "optimizer.weight_decay")
SEED = "train.seed"

type Hyper = dict[str, Any]
"""Dotted key -> the scalar that differs between members."""


@dataclass(frozen=True)
class Population:
    """Members of one program.

    Attributes:
      configs: of the members; equal but for `hyper` and the seed.
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
    def seeds(self) -> list[int]:
        """Of the members."""
        return [config.train.seed for config in self.configs]


class Trained(NamedTuple):
    """A member after its training.

    Attributes:
      leaves: all of the model's on the host; adapters beside their weights.
      refused: steps whose loss or gradient was not finite.
      diverged: whether a run of its own would have stopped for them.
    """

    leaves: Params
    refused: int
    diverged: bool


def member_method(config: UnlearnConfig, hyper: Hyper) -> Method:
    """The method of a member, its varying parameters taken from `hyper`."""
    traced = {
        key.removeprefix("method."): value
        for key, value in hyper.items()
        if key.startswith("method.")
    }
    return methods.from_config(config.method, traced=traced)


def member_optimizer(
    config: UnlearnConfig, hyper: Hyper, steps: int
) -> optax.GradientTransformation:
    """The optimizer of a member, its varying settings taken from `hyper`."""
    changed = {key.split(".")[1]: hyper[key] for key in SCALARS if key in hyper}
    own = dataclasses.replace(config.optimizer, **changed)
    return transform_of(member_method(config, hyper), own, steps)


def can_trace(
    lm: LanguageModel, sets: Mapping[str, TokenisedSet], config: UnlearnConfig, key: str, mesh: Mesh
) -> bool:
    """Can one program hold several values of this key? Found by tracing one step."""
    if key not in SCALARS and not key.startswith("method."):
        return False
    method = member_method(config, {})
    chosen = {role: sets[role] for role in method.needs.roles}
    once = dataclasses.replace(config.train, steps=1)
    batches, _ = plan_batches(chosen, once, mesh, method.needs.aligned)
    rows, columns = batches.at(0)
    heads = jax.eval_shape(lambda: reference_heads(lm, method, mesh, config.train.seed))
    trained, frozen = divide(lm, config.lora, config.train)

    def step(value: Any, params: Params, rest: Any) -> Any:
        state = _begin(config, {key: value}, params, 0, 8)
        return _step(lm, config, 8, {key: value}, state, rest, rows, joined(columns, {}))

    rest = {"frozen": frozen, "heads": heads}
    try:
        jax.eval_shape(step, jax.ShapeDtypeStruct((), jnp.float32), trained, rest)
    except (jax.errors.JAXTypeError, TypeError, ValueError, UserError) as error:
        log.info("%s differs between programs: %s", key, str(error).splitlines()[0])
        return False
    return True


def train_population(
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    population: Population,
    *,
    run: RunDirectory,
    mesh: Mesh,
    listen: Callable[[Progress], None] = lambda _: None,
) -> list[Trained]:
    """Train every member, logging to and resuming from a run directory.

    Args:
      lm: starting point.
      sets: by role, with the reference columns that the method needs.
      population: see `Population`.
      run: directory for metrics and checkpoints.
      mesh: of the run.
      listen: told of every logged step; metrics are named `<metric>/<member>`.
    Returns:
      Every member. One that diverges keeps its last finite parameters and stops nobody else.
    """
    config, count = population.first, len(population.configs)
    method = member_method(config, {})
    batches, steps = _planned(population, sets, method, mesh)
    leaves = [divide(lm, config.lora, each.train) for each in population.configs]
    frozen = leaves[0][1]
    trained = jax.tree.map(lambda *each: np.stack(each), *(one for one, _ in leaves))
    several = len(batches) > 1
    heads = reference_heads(lm, method, mesh, config.train.seed)
    hyper = {key: jnp.asarray(values) for key, values in population.hyper.items()}
    seeds = jnp.asarray(population.seeds)

    def begin(params: Params) -> State:
        return jax.vmap(lambda h, p, s: _begin(config, h, p, s, steps))(hyper, params, seeds)

    one = functools.partial(_step, lm, config, steps)
    at_once = min(population.at_once or (1 if jax.default_backend() == "cpu" else count), count)
    mapped = _mapped(one, at_once, shared_data=not several)
    abstract = jax.eval_shape(begin, trained)
    placed = _stacked_shardings(abstract, mesh)
    state = jax.jit(begin, out_shardings=placed, donate_argnums=0)(
        meshes.put(trained, placed.params)
    )
    compiled = compile_step(functools.partial(mapped, hyper), mesh, placed)
    rest = {"frozen": meshes.put(frozen, meshes.shardings(frozen, mesh)), "heads": heads}
    log.info("%d settings, %d bytes of state", count, sum(x.nbytes for x in jax.tree.leaves(state)))
    settings = config.train
    cadence = Cadence(steps, settings.log_every, settings.save_every, settings.max_skipped)
    identity = {"fingerprint": [each.fingerprint for each in batches], "steps": steps}
    with Checkpoints(run.checkpoints, keep=settings.keep) as checkpoints, jax.set_mesh(mesh):
        restored, start = checkpoints.restore(state), 0
        if restored is not None:
            if any(restored.data.get(key) != identity[key] for key in identity):
                raise UserError(f"{run.path}: its checkpoint is of other settings or data")
            state, start = restored.state, restored.step
            log.info("resuming after step %d of %d", start, steps)
        stream = MetricsStream(run, resume_step=start)
        inputs = _inputs(batches, mesh, start, steps)

        def watch(progress: Progress) -> None:
            stream.write(progress.step, progress.metrics)
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
            stream.close()
    final, skips = jax.tree.map(np.asarray, (state.params, state.skips))
    return [
        Trained(
            merge(frozen, jax.tree.map(lambda leaf, i=i: leaf[i], final)),
            int(skips.total[i]),
            bool(skips.in_a_row[i] >= settings.max_skipped),
        )
        for i in range(count)
    ]


def _step(
    lm: LanguageModel,
    config: UnlearnConfig,
    steps: int,
    hyper: Hyper,
    state: State,
    rest: Any,
    rows: Any,
    reference: Any,
) -> Any:
    """One member's step; `rest` holds the frozen leaves and the heads compared with."""
    method = member_method(config, hyper)
    step = step_of(lm, method, member_optimizer(config, hyper, steps), config.train, steps)
    whole = {
        role: dataclasses.replace(each, head=rest["heads"].get(role))
        for role, each in reference.items()
    }
    return step(state, rest["frozen"], rows, whole)


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


def _begin(config: UnlearnConfig, hyper: Hyper, params: Params, seed: Any, steps: int) -> State:
    method, transform = member_method(config, hyper), member_optimizer(config, hyper, steps)
    return first_state(method, transform, seed)(params)


def _planned(
    population: Population, sets: Mapping[str, TokenisedSet], method: Method, mesh: Mesh
) -> tuple[list[PairedBatches], int]:
    """Batches of every member, or one for all where the seeds are equal; of common shapes."""
    chosen = {role: sets[role] for role in method.needs.roles}
    seeds = population.seeds if len(set(population.seeds)) > 1 else population.seeds[:1]
    settings = population.first.train
    planned, steps = [], 0
    for seed in seeds:
        own = dataclasses.replace(settings, seed=seed)
        batches, steps = plan_batches(chosen, own, mesh, method.needs.aligned)
        planned.append(batches)
    shapes = in_common([each.shapes or {} for each in planned])
    return [dataclasses.replace(each, shapes=shapes) for each in planned], steps


def _stacked_shardings(state: Any, mesh: Mesh) -> Any:
    """Every member's leaves as a single run has them; the member axis is not divided."""
    single = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state)
    placed = meshes.shardings(single, mesh)
    return jax.tree.map(lambda each: NamedSharding(mesh, P(None, *each.spec)), placed)


def _inputs(batches: Sequence[PairedBatches], mesh: Mesh, start: int, stop: int) -> Any:
    """Inputs of every step; stacked over the members where their data differ."""

    def host(planned: PairedBatches, step: int) -> tuple[Any, Any, int]:
        rows, columns = planned.at(step)
        tokens = sum(int(np.count_nonzero(batch.segments)) for batch in rows.values())
        return rows, joined(columns, {}), tokens

    def prepare(step: int) -> Inputs:
        made = [host(each, step) for each in batches]
        tokens = sum(tokens for _, _, tokens in made)
        if len(made) == 1:
            rows, reference, _ = made[0]
            return Inputs(meshes.put_rows(rows, mesh), meshes.put_rows(reference, mesh), tokens)
        placed = NamedSharding(mesh, P(None, ("data", "fsdp")))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *((r, c) for r, c, _ in made))
        rows, reference = meshes.put(stacked, placed)
        return Inputs(rows, reference, tokens)

    return prefetch(prepare, start, stop)
