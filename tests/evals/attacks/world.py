"""A tiny model that has learnt a few records by heart, and the data of an audit."""

import dataclasses
import functools

import jax
from evals import small

from jaxforget.combiners import weighted_sum
from jaxforget.data.batches import PairedBatches
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.state import init_state
from jaxforget.evals.attacks import AuditData
from jaxforget.loops import plain
from jaxforget.objectives import nll_objective


def data(**changes):
    sets = small.records()
    chosen = {"forget": sets["forget"], "retain": sets["retain"], "unrelated": sets["world_facts"]}
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    return AuditData(**{**chosen, "mesh": mesh, "max_length": 128, "max_new_tokens": 8, **changes})


@functools.cache
def _knowing():
    return knowing(data().forget)


def knowing(records=None):
    """The model after 60 steps on some records, those to forget unless given."""
    if records is None:
        return _knowing()
    lm, spec, combiner = small.model(), nll_objective(), weighted_sum({"nll": 1.0})
    (role,) = spec.needs.roles
    batches = PairedBatches({role: small.tokens(records)}, 6, 0).plan(60)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 60)
    step = jax.jit(plain(lm.score, spec.objective, combiner, optimizer))
    state = init_state(lm.params, optimizer, combiner)
    for done in range(60):
        state, _ = step(state, {}, batches.at(done)[0], {})
    return dataclasses.replace(lm, params=state.params)
