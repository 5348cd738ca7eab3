"""One setting of a population: the pieces of a run, some of their numbers traced.

Numbers are validated where the settings are read; in here they may be tracers.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxforget import methods
from jaxforget.config import UnlearnConfig
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import make_optimizer
from jaxforget.engine.state import init_state
from jaxforget.engine.tree import Params
from jaxforget.engine.types import State
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.inputs import joined, reference_heads, with_heads
from jaxforget.studies.settings import SCALARS
from jaxforget.studies.training import divide, plan_batches

log = logging.getLogger(__name__)

type Hyper = dict[str, Any]
"""Dotted key -> the scalar that differs between members."""


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
    transform = make_optimizer(dataclasses.replace(config.optimizer, **changed), steps)
    method = member_method(config, hyper)
    if method.transform is None:
        return transform
    return optax.chain(method.transform(steps), transform)


def traceable(
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    config: UnlearnConfig,
    keys: Sequence[str],
    mesh: Mesh,
) -> list[str]:
    """Numbers of which one program can hold several values, found by tracing a step with each.

    The others are branched on, or decide a shape.

    Args:
      lm: starting point.
      sets: by role, with the reference columns that the method needs.
      config: of one member.
      keys: some of `jaxforget.studies.settings.numbers`.
      mesh: of the run.
    """
    method = member_method(config, {})
    chosen = {role: sets[role] for role in method.needs.roles}
    once = dataclasses.replace(config.train, steps=1)
    batches, _ = plan_batches(chosen, once, mesh, method.needs.aligned)
    rows, columns = batches.at(0)
    heads = reference_heads(lm, method, mesh, config.train.seed)
    trained, frozen = divide(lm, config.lora, config.train)

    def step(hyper: Hyper, params: Params, rest: Any) -> Any:
        state = member_state(config, hyper, params, 0, 8)
        return member_step(lm, config, 8, hyper, state, rest, rows, joined(columns, {}))

    rest = {"frozen": frozen, "heads": heads}
    jax.eval_shape(step, {}, trained, rest)  # what fails here is no matter of a traced number
    found = []
    for key in keys:
        try:
            jax.eval_shape(step, {key: jax.ShapeDtypeStruct((), jnp.float32)}, trained, rest)
            found.append(key)
        except (jax.errors.JAXTypeError, TypeError, ValueError, UserError) as error:
            log.info("%s differs between programs: %s", key, str(error).splitlines()[0])
    return found


def member_step(
    lm: LanguageModel,
    config: UnlearnConfig,
    steps: int,
    hyper: Hyper,
    state: State,
    rest: Any,
    rows: Any,
    reference: Any,
) -> Any:
    """(state, scalars to log) of a step; `rest`: frozen leaves and the heads compared with."""
    method = member_method(config, hyper)
    step = method.loop.make(
        lm.score,
        method.objective,
        method.combiner,
        member_optimizer(config, hyper, steps),
        accumulate=config.train.accumulate,
    )
    return step(state, rest["frozen"], rows, with_heads(reference, rest["heads"]))


def member_state(
    config: UnlearnConfig, hyper: Hyper, params: Params, seed: Any, steps: int
) -> State:
    """A member's state before its first of `steps` steps."""
    method, transform = member_method(config, hyper), member_optimizer(config, hyper, steps)
    carried = method.loop.init(params, transform)
    return init_state(params, transform, method.combiner, seed=seed, loop_state=carried)
