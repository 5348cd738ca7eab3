"""A run's step without its arrays: what would be compiled, placed and held, from shapes alone."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxforget.config import FinetuneConfig, UnlearnConfig
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.engine.state import shardings_of, state_shapes
from jaxforget.engine.step import Step
from jaxforget.engine.train import compile_step
from jaxforget.engine.tree import Params, unflatten
from jaxforget.engine.types import Batches, Head, Reference, State
from jaxforget.methods import Method
from jaxforget.models.config import DecoderConfig, param_shapes
from jaxforget.models.decoder import Compute
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies import inputs
from jaxforget.studies.batches import plan_batches
from jaxforget.studies.training import (
    divide,
    first_state,
    step_of,
    transform_of,
)

_STEPS = 100  # of the run, which schedules and some loops ask for and shapes do not depend on


@dataclass(frozen=True)
class AbstractStep:
    """One step of a run; every leaf is a `ShapeDtypeStruct` that says where it lies.

    Attributes:
      step: the function.
      state, frozen, batches, reference: its arguments.
      mesh: of the run.
      tokens: real tokens of one step.
      labelled: labelled targets of one step.
    """

    step: Step
    state: State
    frozen: Params
    batches: Batches
    reference: Reference
    mesh: Mesh | AbstractMesh
    tokens: int
    labelled: int

    def compiled(self) -> Any:
        """The program that `jaxforget` would run, made for this process' devices.

        Raises:
          ValueError: the mesh is an abstract one.
        """
        if not isinstance(self.mesh, Mesh):
            raise ValueError("a step on an abstract mesh cannot be compiled")
        step = compile_step(self.step, self.mesh, shardings_of(self.state))
        with jax.set_mesh(self.mesh):
            return step.program(self.state, self.frozen, self.batches, self.reference)


def abstract_step(
    config: UnlearnConfig | FinetuneConfig,
    method: Method,
    model: Mapping[str, Any],
    mesh: Mesh | AbstractMesh,
    *,
    length: int,
    labelled: int,
) -> AbstractStep:
    """The step of a configuration.

    Args:
      config: of the run; neither its model nor its data are read.
      method: the configuration's.
      model: content of the model's Hugging Face config.json.
      mesh: where it would run.
      length: tokens of an example; all are of this length.
      labelled: how many of them are labelled targets.
    """
    settings = config.train
    lm = _abstract_model(model, config)
    sets = {
        role: _made_up(lm, method, role, settings.batch_size, length, labelled)
        for role in method.needs.roles
    }
    batches, _ = plan_batches(
        sets, dataclasses.replace(settings, steps=1), mesh, method.needs.aligned
    )
    rows, columns = batches.at(0)
    trained, frozen = jax.eval_shape(
        lambda params: divide(dataclasses.replace(lm, params=params), config.lora, settings),
        lm.params,
    )
    transform = transform_of(method, config.optimizer, _STEPS)
    by_rows, whole = meshes.by_rows(mesh), meshes.replicated(mesh)
    divided = jax.tree.map(
        lambda leaf: meshes.shape_at(leaf, by_rows if np.ndim(leaf) else whole), rows
    )
    heads = _heads(lm, method, mesh)
    compared = jax.eval_shape(inputs.joined, columns, heads)
    reference = {
        role: dataclasses.replace(
            jax.tree.map(
                lambda leaf: meshes.shape_at(leaf, by_rows), dataclasses.replace(scores, head=None)
            ),
            head=heads.get(role),
        )
        for role, scores in compared.items()
    }
    return AbstractStep(
        step_of(lm, method, transform, settings, _STEPS),
        state_shapes(first_state(method, transform, settings.seed), trained, mesh),
        jax.tree.map(meshes.shape_at, frozen, meshes.shardings(frozen, mesh)),
        divided,
        reference,
        mesh,
        tokens=sum(int(np.count_nonzero(each.segments)) for each in rows.values()),
        labelled=sum(int(each.mask.sum()) for each in rows.values()),
    )


def _abstract_model(model: Mapping[str, Any], config: Any) -> LanguageModel:
    cfg = DecoderConfig.from_hf(model)
    dtype = jnp.dtype(config.dtype)
    params = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in param_shapes(cfg).items()}
    compute = Compute(dtype=config.train.compute, remat=config.train.remat)
    return LanguageModel(unflatten(params), cfg, model, None, compute)


def _made_up(
    lm: LanguageModel, method: Method, role: str, count: int, length: int, labelled: int
) -> TokenisedSet:
    """Examples of one length, with as many reference columns as the method reads."""
    tokens = np.zeros(count * length, np.int32)
    mask = np.tile(np.arange(length) >= length - labelled, count)
    made = TokenisedSet(
        tokens,
        tokens,
        mask,
        np.arange(count + 1, dtype=np.int64) * length,
        np.arange(count),
        "none",
    )
    wide = (count * labelled, lm.config.hidden_size)
    widths = {"logp": wide[:1], "hidden": wide, "residual": wide}
    if method.needs.values is not None:
        layers, positions = method.needs.values
        widths["values"] = (wide[0], min(layers, lm.config.layers) * positions)
    names = {
        "logp": inputs.LOGP,
        "hidden": inputs.HIDDEN,
        "residual": inputs.RESIDUAL,
        "values": inputs.VALUES,
    }
    fields = method.needs.reference.get(role, frozenset())
    columns = {names[name]: np.zeros(widths[name], np.float32) for name in widths if name in fields}
    if fields:
        columns.setdefault(inputs.LOGP, np.zeros(wide[:1], np.float32))
    return made.with_columns(**columns)


def _heads(lm: LanguageModel, method: Method, mesh: Mesh | AbstractMesh) -> dict[str, Head]:
    head = jax.eval_shape(lm.head, lm.params)
    placed: Head = jax.tree.map(
        meshes.shape_at, head, meshes.shardings(head, mesh, inputs.HEAD_RULES)
    )
    roles = {role for role, fields in method.reference.items() if "hidden" in fields}
    return {role: placed for role in roles}
