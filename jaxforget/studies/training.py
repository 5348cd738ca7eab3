"""From a loaded model and tokenised sets to trained parameters, for every training study."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxforget.config import LoraConfig, TrainConfig
from jaxforget.data.batches import PairedBatches, prefetch
from jaxforget.data.sets import TokenisedSet
from jaxforget.edits.material import Material
from jaxforget.engine import mesh as meshes
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxforget.engine.run_dir import MetricsStream, RunDirectory
from jaxforget.engine.state import init_state
from jaxforget.engine.train import Cadence, Inputs, Progress, compile_step, train
from jaxforget.engine.tree import Params, flatten, matches, merge, split
from jaxforget.engine.types import Batches, Head, Reference, ReferenceScores, State
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel
from jaxforget.models.lora import init_lora
from jaxforget.studies.material import material

log = logging.getLogger(__name__)

LOGP, HIDDEN, RESIDUAL = "reference_logp", "reference_hidden", "reference_residual"


@dataclass(frozen=True)
class Trained:
    """What training leaves.

    Attributes:
      params: all leaves, on the devices; adapters beside their weights where LoRA was used.
      steps: taken in all.
      tokens_per_second, step_ms: medians over logged intervals of this process, without the
        first (which compiles); None where no step was taken.
      seconds: from the caller's clock, of all processes that led to these parameters: what a
        killed one did after its last checkpoint is done again and counts once.
    """

    params: Params
    steps: int
    tokens_per_second: float | None
    step_ms: float | None
    seconds: float


def divide(
    lm: LanguageModel, lora: LoraConfig | None, settings: TrainConfig
) -> tuple[Params, Params]:
    """(trained leaves, frozen leaves) as the configuration asks.

    Raises:
      UserError: nothing would be trained.
    """
    if lora is not None:
        if settings.trainable is not None:
            raise UserError("train.trainable and lora exclude each other; set one of them")
        trained, extra = init_lora(
            jax.random.key(settings.seed),
            lm.params,
            rank=lora.rank,
            alpha=lora.alpha,
            targets=lora.targets,
        )
        return trained, merge(lm.params, extra)
    try:
        chosen = matches(settings.trainable or "")
    except re.error as error:
        raise UserError(
            f"train.trainable {settings.trainable!r} is no regular expression: {error}"
        ) from None
    trained, frozen = split(lm.params, chosen)
    if not trained:
        raise UserError(
            f"train.trainable {settings.trainable!r} matches no parameter. Paths: "
            f"{', '.join(flatten(lm.params))}."
        )
    return trained, frozen


def refuse_early(
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    settings: TrainConfig,
    optimizer: OptimizerConfig,
    lora: LoraConfig | None,
) -> None:
    """Raise, before anything is computed, the UserError that training would end in."""
    make_optimizer(optimizer, 1)
    PairedBatches(sets, settings.batch_size, settings.seed, settings.row_length)
    jax.eval_shape(
        lambda params: divide(dataclasses.replace(lm, params=params), lora, settings), lm.params
    )


def plan_batches(
    sets: Mapping[str, TokenisedSet],
    settings: TrainConfig,
    mesh: Mesh,
    aligned: frozenset[str] = frozenset(),
) -> tuple[PairedBatches, int]:
    """Batches of fixed shape for the whole run, and the number of steps."""
    multiple = meshes.row_shards(mesh) * settings.accumulate
    batches = PairedBatches(
        sets,
        settings.batch_size,
        settings.seed,
        settings.row_length,
        multiple,
        aligned=aligned,
    )
    steps = settings.steps or max(1, round(settings.epochs * batches.steps_per_epoch))
    return batches.plan(steps), steps


def train_model(
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    method: Method,
    *,
    run: RunDirectory,
    settings: TrainConfig,
    optimizer: OptimizerConfig,
    lora: LoraConfig | None,
    mesh: Mesh,
    clock: Callable[[], float],
    listen: Callable[[Progress], None] = lambda _: None,
) -> Trained:
    """Train, logging to and resuming from the run directory.

    Args:
      lm: starting point; its parameters stay as they are.
      sets: by role, with the reference columns the method needs.
      method: objective and combiner.
      run: directory for metrics and checkpoints.
      settings, optimizer, lora: see the configuration.
      mesh: of the run.
      clock: seconds since this process began what is to be timed.
      listen: told of every logged step.
    """
    assert method.objective is not None, "an edit without training is not trained"
    trained_on = {role: sets[role] for role in method.needs.roles}
    batches, steps = plan_batches(trained_on, settings, mesh, method.needs.aligned)
    trained, frozen = divide(lm, lora, settings)
    frozen = meshes.put(frozen, meshes.shardings(frozen, mesh))
    heads = _reference_heads(lm, method, mesh, settings.seed)
    transform = make_optimizer(optimizer, steps)
    if method.transform is not None:
        transform = optax.chain(method.transform(steps), transform)

    def begin(params: Params) -> State:
        carried = method.loop.init(params, transform)
        return init_state(
            params, transform, method.combiner, seed=settings.seed, loop_state=carried
        )

    placed = meshes.shardings(jax.eval_shape(begin, trained), mesh)
    # copied: the state is donated, the caller's arrays must survive
    copies = meshes.put(jax.tree.map(np.array, trained), placed.params)
    state = jax.jit(begin, out_shardings=placed)(copies)
    step = method.loop.make(
        lm.score, method.objective, method.combiner, transform, accumulate=settings.accumulate
    )
    compiled = compile_step(step, mesh, placed)
    cadence = Cadence(steps, settings.log_every, settings.save_every, settings.max_skipped)
    identity = {"fingerprint": batches.fingerprint, "steps": steps}
    with Checkpoints(run.checkpoints, keep=settings.keep) as checkpoints, jax.set_mesh(mesh):
        restored = checkpoints.restore(state)
        start, before = 0, 0.0
        if restored is None and method.prepare is not None:
            state = _prepared(
                state, placed, method, material(lm, (state.params, frozen), sets, settings, mesh)
            )
        if restored is not None:
            _check_same(restored.data, identity, run)
            state, start, before = restored.state, restored.step, restored.data.get("seconds", 0.0)
            log.info("resuming after step %d of %d", start, steps)
        stream, watch = MetricsStream(run, resume_step=start), _Watch(listen)
        watch.attach(stream, make_schedule(optimizer, steps))
        inputs = _inputs(batches, heads, mesh, start, steps)
        try:
            state = train(
                compiled,
                state,
                frozen,
                inputs,
                cadence,
                start=start,
                checkpoints=checkpoints,
                data=lambda: {**identity, "seconds": before + clock()},
                listen=watch,
            )
        finally:
            inputs.close()
            stream.close()
    seconds = before if start == steps else round(before + clock(), 3)
    return Trained(merge(frozen, state.params), steps, *watch.medians(), seconds)


def _prepared(state: State, placed: Any, method: Method, found: Material) -> State:
    """The state with what the combiner measures on the data before the first step."""
    assert method.prepare is not None
    filled = method.prepare(found, state.combiner_state)
    return dataclasses.replace(state, combiner_state=jax.device_put(filled, placed.combiner_state))


def _check_same(saved: Mapping[str, Any], identity: Mapping[str, Any], run: RunDirectory) -> None:
    for key, what in (("fingerprint", "data, tokenizer or seed"), ("steps", "number of steps")):
        if saved.get(key) != identity[key]:
            raise UserError(
                f"{run.path}: its checkpoint was made with another {what} "
                f"({saved.get(key)!r:.40} -> {identity[key]!r:.40}); choose another run_dir"
            )


def _reference_heads(lm: LanguageModel, method: Method, mesh: Mesh, seed: int) -> dict[str, Head]:
    """Output projections of the models compared with, by role where distributions are compared."""
    rules = (("weight$", P("tensor", "fsdp")), ("bias$", P("tensor")))

    def placed(model: LanguageModel) -> Head:
        head = jax.tree.map(np.array, model.head(model.params))
        return meshes.put(head, meshes.shardings(head, mesh, rules))

    roles = {role for role, fields in method.reference.items() if "hidden" in fields}
    random = roles & method.needs.random
    heads = dict.fromkeys(roles - random, placed(lm)) if roles - random else {}
    return heads | (dict.fromkeys(random, placed(lm.reinitialised(seed))) if random else {})


def _inputs(
    batches: PairedBatches, heads: Mapping[str, Head], mesh: Mesh, start: int, stop: int
) -> Any:
    """Device-ready inputs of every step, prepared one thread ahead."""

    def prepare(step: int) -> Inputs:
        rows, columns = batches.at(step)
        tokens = sum(int(np.count_nonzero(batch.segments)) for batch in rows.values())
        on_device: Batches = {role: meshes.put_rows(batch, mesh) for role, batch in rows.items()}
        reference: Reference = {}
        for role, named in columns.items():
            if LOGP in named:
                reference[role] = _reference(meshes.put_rows(dict(named), mesh), heads.get(role))
        return Inputs(on_device, reference, tokens)

    return prefetch(prepare, start, stop)


def _reference(columns: Mapping[str, Any], head: Head | None) -> ReferenceScores:
    hidden = columns.get(HIDDEN)
    if hidden is not None and head is not None:
        hidden = hidden.astype(head.weight.dtype)  # as the model multiplies them
    return ReferenceScores(
        logp=columns[LOGP], hidden=hidden, head=head, residual=columns.get(RESIDUAL)
    )


class _Watch:
    """Passes progress on, to the metrics file and the listener, and remembers the pace."""

    def __init__(self, listen: Callable[[Progress], None]) -> None:
        self._listen, self._pace = listen, []

    def attach(self, stream: MetricsStream, schedule: Callable[[Any], Any]) -> None:
        self._stream, self._schedule = stream, schedule

    def __call__(self, progress: Progress) -> None:
        rate = float(self._schedule(progress.step - 1))
        row = {**progress.metrics, "learning_rate": rate}
        self._stream.write(progress.step, row)
        self._pace.append((row["tokens_per_second"], row["step_ms"]))
        self._listen(Progress(progress.step, progress.steps, row))

    def medians(self) -> tuple[float | None, float | None]:
        pace = self._pace[1:] or self._pace
        if not pace:
            return None, None
        rates, times = zip(*pace, strict=True)
        return float(np.median(rates)), float(np.median(times))
