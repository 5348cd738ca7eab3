"""A few plain steps on some examples: what attacks relearn with and retention is probed with."""

import functools
from collections.abc import Collection, Iterator
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from jaxforget.combiners import weighted_sum
from jaxforget.data.batches import PairedBatches
from jaxforget.data.layout import Shape
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.mesh import put, put_rows, replicated, row_shards, shardings
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.partwise import Entrywise
from jaxforget.engine.state import init_state, make_state, shardings_of, state_shapes
from jaxforget.engine.train import CompiledStep, compile_step
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import Batches, Metrics, ScoreFn, State
from jaxforget.loops import plain
from jaxforget.models.language_model import LanguageModel
from jaxforget.models.lora import init_lora, merge_lora
from jaxforget.objectives import nll_objective

TARGETS = "layers/(attn/[qkvo]|mlp/(gate|up|down))"


def brief_training(
    lm: LanguageModel,
    trained_on: TokenisedSet,
    measured: Collection[int],
    *,
    learning_rate: float,
    batch_size: int,
    mesh: Mesh,
    seed: int = 0,
    rank: int = 0,
) -> Iterator[tuple[int, Params]]:
    """Train with AdamW at a constant rate, stopping to look.

    Args:
      lm: the model begun with; it is left as it is.
      trained_on: examples, drawn without replacement until none is left, then anew.
      measured: numbers of steps after which to look; the largest ends the training.
      learning_rate: > 0.
      batch_size: examples a step.
      mesh: devices.
      seed: of the order of examples and of the adapters.
      rank: of the adapters trained; 0: all weights.
    Yields:
      (steps taken, all parameters, merged, on the devices) at every number in `measured`; valid
      until the next one is asked for.
    Raises:
      FloatingPointError: a loss or gradient was not finite.
    """
    last = max(measured)
    if 0 in measured:
        yield 0, lm.params
    if not last:
        return
    (role,) = _SPEC.needs.roles
    batches = PairedBatches(
        {role: trained_on}, batch_size, seed, row_multiple=row_shards(mesh)
    ).plan(last)
    trained, frozen = _divided(lm, rank, seed, mesh)
    shapes = state_shapes(_first, trained, mesh)
    state = make_state(_first, trained, shapes)
    assert batches.shapes is not None
    leaves, treedef = jax.tree.flatten(shapes)
    step = _step(lm.score, batches.shapes[role], mesh, tuple(leaves), treedef)
    rate = jax.device_put(np.float32(learning_rate), replicated(mesh))
    with jax.set_mesh(mesh):
        for done in range(1, last + 1):
            batch = {role: put_rows(batches.at(done - 1)[0][role], mesh)}
            state, metrics = step(state, frozen, batch, rate)
            if done not in measured:
                continue
            if metrics["skipped"] > 0:
                raise FloatingPointError(f"a loss or gradient was not finite by step {done}")
            yield done, merge_lora(merge(frozen, state.params))


_SPEC, _COMBINER = nll_objective(), weighted_sum({"nll": 1.0})


def _optimizer(rate: Any) -> Entrywise:
    return make_optimizer(OptimizerConfig(), schedule=lambda _: rate)


def _first(params: Params) -> State:
    return init_state(params, _optimizer(0.0), _COMBINER)  # no rate is part of a state


@functools.lru_cache(maxsize=16)
def _step(
    score: ScoreFn, shape: Shape, mesh: Mesh, leaves: tuple[Any, ...], treedef: Any
) -> CompiledStep:
    """One program for all models of an architecture and all learning rates.

    It is compiled at its first call: for batches of this shape and a state of these leaves.
    """
    del shape
    placed = shardings_of(jax.tree.unflatten(treedef, leaves))

    def step(state: State, frozen: Params, batches: Batches, rate: Any) -> tuple[State, Metrics]:
        inner = plain(score, _SPEC.objective, _COMBINER, _optimizer(rate))
        return inner(state, frozen, batches, {})

    return compile_step(cast(Any, step), mesh, placed)


def _divided(lm: LanguageModel, rank: int, seed: int, mesh: Mesh) -> tuple[Params, Params]:
    """(trained leaves, frozen leaves), the latter on the devices."""
    trained, frozen = lm.params, {}
    if rank:
        key = jax.random.key(seed)
        trained, extra = init_lora(key, lm.params, rank=rank, alpha=2.0 * rank, targets=TARGETS)
        frozen = merge(lm.params, extra)
    return trained, put(frozen, shardings(frozen, mesh))
