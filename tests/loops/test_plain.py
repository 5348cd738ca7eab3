"""One step of the plain loop against float64, and what must never change."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objectives import toy_lm as toy
from objectives.cases import PARAMS, batches, close, expected_terms

from jaxforget.combiners import pcgrad, weighted_sum
from jaxforget.engine.state import init_state
from jaxforget.loops import plain
from jaxforget.objectives import graddiff

SPEC, WEIGHTS = graddiff(), {"forget": 0.5, "retain": 2.0}
ROLES = {role: batches()[role] for role in SPEC.needs.roles}


def run(some=ROLES, params=PARAMS, frozen=None, optimizer=None, combiner=None, accumulate=1):
    optimizer = optimizer or optax.sgd(0.1)
    combiner = combiner or weighted_sum(WEIGHTS)
    step = jax.jit(plain(toy.score, SPEC.objective, combiner, optimizer, accumulate=accumulate))
    state = init_state(params, optimizer, combiner)
    return step(state, frozen or {}, some, {})


def test_a_step_is_gradient_descent_on_the_weighted_terms():
    state, metrics = run()
    terms, start = expected_terms("graddiff"), toy.float64(PARAMS)

    def loss(p):
        return sum(WEIGHTS[name] * term(p) for name, term in terms.items())

    slope = toy.differences(loss, start)
    close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, start, slope), 2e-5)
    np.testing.assert_allclose(metrics["loss"], loss(start), rtol=1e-5)
    for name, term in terms.items():
        np.testing.assert_allclose(metrics[name], term(start), rtol=1e-5)
    norm = np.sqrt(sum((g**2).sum() for g in slope.values()))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    np.testing.assert_allclose(metrics["update_norm"], 0.1 * norm, rtol=1e-4)
    assert int(state.step) == 1 and int(metrics["skipped"]) == 0


@pytest.mark.parametrize("combiner", [None, pcgrad(WEIGHTS)])
def test_micro_batches_change_nothing(combiner):
    whole, parts = (run(combiner=combiner, accumulate=k)[0] for k in (1, 2))
    close(parts.params, whole.params, 2e-6)


def test_frozen_leaves_take_part_and_stay():
    trained = {"mix": PARAMS["mix"]}
    frozen = {"embed": PARAMS["embed"], "head": PARAMS["head"]}
    part, _ = run(params=trained, frozen=frozen)
    whole, _ = run()
    assert set(part.params) == {"mix"}
    close(part.params["mix"], whole.params["mix"], 1e-6)


def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted():
    broken = {**PARAMS, "embed": PARAMS["embed"].at[3].set(jnp.inf)}
    optimizer = optax.adam(0.1)
    state, metrics = run(params=broken, optimizer=optimizer)
    for name in broken:
        np.testing.assert_array_equal(state.params[name], broken[name])
    for leaf in jax.tree.leaves(state.opt_state):
        np.testing.assert_array_equal(leaf, jnp.zeros_like(leaf))
    assert int(state.step) == int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == 1
    healed = replace(state, params=PARAMS)
    step = jax.jit(plain(toy.score, SPEC.objective, weighted_sum(WEIGHTS), optimizer))
    state, metrics = step(healed, {}, ROLES, {})
    assert int(metrics["skipped"]) == 1 and int(metrics["skipped_in_a_row"]) == 0
