"""From a loaded model and tokenised sets to trained parameters, for every training study."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jaxforget.config import LoraConfig, TrainConfig
from jaxforget.data.layout import Shape
from jaxforget.data.sets import TokenisedSet
from jaxforget.edits.material import Material
from jaxforget.engine import mesh as meshes
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxforget.engine.run_dir import MetricsStream, RunDirectory
from jaxforget.engine.state import Begin, init_state, make_state, shardings_of, state_shapes
from jaxforget.engine.step import Step, micro_batch_means
from jaxforget.engine.train import Cadence, CompiledStep, Progress, compile_step, train
from jaxforget.engine.tree import Params, flatten, matches, merge, split
from jaxforget.engine.types import Loop, Objective, State
from jaxforget.loops import with_realised_changes
from jaxforget.methods import Method
from jaxforget.models.config import FEW_LAYERS
from jaxforget.models.language_model import LanguageModel
from jaxforget.models.lora import init_lora, merge_lora
from jaxforget.studies.batches import paired, plan_batches
from jaxforget.studies.common import to_host
from jaxforget.studies.inputs import reference_heads, step_inputs
from jaxforget.studies.material import material
from jaxforget.studies.recording import recording
from jaxforget.studies.selection import Judging
from jaxforget.studies.watch import Watch

log = logging.getLogger(__name__)


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
      step_bytes: most memory of one device during a step, see `CompiledStep`; None where no step
        was taken.
      selected: step whose model was selected, where one was, see `TrainConfig.select`.
    """

    params: Params
    steps: int
    tokens_per_second: float | None
    step_ms: float | None
    seconds: float
    step_bytes: int | None = None
    selected: int | None = None


@dataclass(frozen=True)
class Request:
    """Which of several requests in a row is trained.

    Attributes:
      index: from 0.
      steps: of every request of the run.
      start: the model that the request starts from, which its losses compare with.
      shapes: that suit the batches of all requests, by role; see `widened`.
      programs: steps compiled for the requests before, by shapes; what is compiled is put there.
    """

    index: int
    steps: tuple[int, ...]
    start: LanguageModel
    shapes: Mapping[str, Shape]
    programs: dict[Any, CompiledStep]

    @property
    def first(self) -> int:
        """Steps of the run before this request."""
        return sum(self.steps[: self.index])


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
    paired(sets, settings)
    jax.eval_shape(
        lambda params: divide(dataclasses.replace(lm, params=params), lora, settings), lm.params
    )


def loop_of(method: Method, settings: TrainConfig, steps: int) -> Loop:
    """The method's loop for so many steps, with what the configuration asks to be logged."""
    loop = method.loop if method.planned is None else method.planned(steps)
    return with_realised_changes(loop) if settings.realised_changes else loop


def objective_of(method: Method, settings: TrainConfig) -> Objective:
    """What is minimised, reduced over micro-batches as the configuration says.

    Raises:
      UserError: `peer_compat` without micro-batches.
    """
    assert method.objective is not None, "an edit without training is not trained"
    if not settings.peer_compat:
        return method.objective
    if settings.accumulate == 1:
        raise UserError(
            "train.peer_compat: with train.accumulate 1 a step is one micro-batch, and its mean "
            "open-unlearning's already"
        )
    return micro_batch_means(method.objective, settings.accumulate)


def transform_of(
    method: Method, optimizer: OptimizerConfig, *steps: int
) -> optax.GradientTransformation:
    """The optimizer, behind what the method does to gradients; `steps` see `make_schedule`."""
    own = make_optimizer(optimizer, *steps)
    return own if method.transform is None else optax.chain(method.transform(sum(steps)), own)


def first_state(method: Method, transform: optax.GradientTransformation, seed: Any) -> Begin:
    """From the leaves that are trained to the state before the first step; a seed may be traced."""

    def begin(params: Params) -> State:
        carried = method.loop.init(params, transform)
        return init_state(params, transform, method.combiner, seed=seed, loop_state=carried)

    return begin


def step_of(
    lm: LanguageModel,
    method: Method,
    transform: optax.GradientTransformation,
    settings: TrainConfig,
    steps: int,
) -> Step:
    """What a run of so many steps repeats, before it is compiled."""
    loop = loop_of(method, settings, steps)
    if loop.second_order and lm.config.layers <= FEW_LAYERS:
        written = dataclasses.replace(lm.compute, unroll=True)
        lm = dataclasses.replace(lm, compute=written)
    return loop.make(
        lm.score,
        objective_of(method, settings),
        method.combiner,
        transform,
        accumulate=settings.accumulate,
    )


def train_model(
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    method: Method,
    *,
    request: Request | None = None,
    run: RunDirectory,
    settings: TrainConfig,
    optimizer: OptimizerConfig,
    lora: LoraConfig | None,
    mesh: Mesh,
    clock: Callable[[], float],
    listen: Callable[[Progress], None] = lambda _: None,
    watched: frozenset[int] | None = None,
    judging: Judging | None = None,
    consume: bool = False,
) -> Trained:
    """Train, logging to and resuming from the run directory.

    Args:
      lm: starting point; its parameters stay as they are, unless consumed.
      sets: by role, with the reference columns the method needs.
      method: objective and combiner.
      request: where this is one of several requests; the state is carried on from the one before.
      run: directory for metrics and checkpoints.
      settings, optimizer, lora: see the configuration.
      mesh: of the run.
      clock: seconds since this process began what is to be timed.
      listen: told of every logged step.
      watched: examples of which every step that sees one is recorded, see `recording`.
      judging: how it is evaluated while it goes on, or None.
      consume: the arrays of `lm` that are trained become the state's, and are gone afterwards.
    """
    trained_on = {role: sets[role] for role in method.needs.roles}
    shared = None if request is None else request.shapes
    batches, steps = plan_batches(trained_on, settings, mesh, method.needs.aligned, shared)
    trained, frozen = divide(lm, lora, settings)
    frozen = meshes.put(frozen, meshes.shardings(frozen, mesh))
    request = request or Request(0, (steps,), lm, {}, {})
    first, total = request.first, sum(request.steps)
    heads = reference_heads(request.start, method, mesh, settings.seed)
    transform = transform_of(method, optimizer, *request.steps)
    step = step_of(lm, method, transform, settings, total)
    begin = first_state(method, transform, settings.seed)
    shapes = state_shapes(begin, trained, mesh)
    key = tuple(sorted((batches.shapes or {}).items()))
    compiled = request.programs.setdefault(key, compile_step(step, mesh, shardings_of(shapes)))
    cadence = Cadence(first + steps, settings.log_every, settings.save_every, settings.max_skipped)
    identity = {"fingerprint": batches.fingerprint, "steps": total, "request": request.index}
    with Checkpoints(run.checkpoints, keep=settings.keep) as checkpoints, jax.set_mesh(mesh):
        restored = checkpoints.restore(shapes)
        start, before = first, 0.0
        if restored is None:
            if request.index:
                raise UserError(f"{run.path}: the checkpoints of the requests before are gone")
            state = make_state(begin, trained, shapes, consume=consume)
        else:
            if restored.step < first:
                raise UserError(f"{run.path}: the checkpoint of step {first} is damaged or gone")
            _check_same(restored.data, identity, restored.step == first, run)
            state, start, before = restored.state, restored.step, restored.data.get("seconds", 0.0)
            log.info("resuming after step %d of %d", start, total)
        if start == first and method.prepare is not None:
            found = material(lm, (state.params, frozen), sets, settings, mesh)
            state = _prepared(state, shapes, method, found)
        stream, watch = MetricsStream(run, resume_step=start), Watch(listen)
        watch.attach(stream, make_schedule(optimizer, *request.steps))
        hooks = []
        if watched is not None:
            hooks.append(recording(run.updates, batches, watched, start, state.params, frozen))
        if judging is not None:
            judging.resumed(start)
            hooks.append(_looking(judging, frozen, first + steps))
        inputs = step_inputs(batches, heads, mesh, (first, start, first + steps))
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
                after_step=lambda done, now: sum(hook(done, now) for hook in hooks),
            )
        finally:
            inputs.close()
            stream.close()
    seconds = before if start == first + steps else round(before + clock(), 3)
    trained = merge(frozen, state.params)
    return Trained(trained, first + steps, *watch.medians(), seconds, compiled.peak_bytes)


def _prepared(state: State, shapes: State, method: Method, found: Material) -> State:
    """The state with what the combiner measures on the data before the first step."""
    assert method.prepare is not None
    filled = method.prepare(found, state.combiner_state)
    return dataclasses.replace(
        state, combiner_state=jax.device_put(filled, shardings_of(shapes).combiner_state)
    )


def _check_same(
    saved: Mapping[str, Any], identity: Mapping[str, Any], new: bool, run: RunDirectory
) -> None:
    """Refuse another run's checkpoint; one that is `new` to a request holds the one before."""
    expected = dict(identity)
    if new and identity["request"]:
        del expected["fingerprint"]
    for key, what in (("fingerprint", "data, tokenizer or seed"), ("steps", "number of steps")):
        if key in expected and saved.get(key) != identity[key]:
            raise UserError(
                f"{run.path}: its checkpoint was made with another {what} "
                f"({saved.get(key)!r:.40} -> {identity[key]!r:.40}); choose another run_dir"
            )


def _looking(judging: Judging, frozen: Params, last: int) -> Callable[[int, State], float]:
    """Evaluates the merged model after the steps where that is due."""

    def after_step(done: int, state: State) -> float:
        if not judging.due(done, last):
            return 0.0
        params = jax.block_until_ready(state.params)  # the step's own time is training
        return judging.look(done, merge_lora(to_host(merge(frozen, params))))

    return after_step
