"""Guards as optax transformations: what is passed on, what is carried, what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combiners.trees import bits, flat, like, same_bits, tree

from jaxforget.combiners import weighted_sum
from jaxforget.engine.errors import UserError
from jaxforget.engine.state import init_state
from jaxforget.engine.step import SUM, guarded_update
from jaxforget.strategies import (
    NOTHING,
    Guard,
    as_transform,
    chain,
    ema,
    end_task,
    evaluated,
    ewc,
    mas,
    reset_optimizer,
    si,
    wise_ft,
)

RNG = np.random.default_rng(0)
PARAMS, GRADIENT = tree(RNG), tree(RNG)


def steps(transform, count=5, params=PARAMS, state=None, gradient=lambda p: GRADIENT):
    state = transform.init(params) if state is None else state

    @jax.jit
    def step(params, state):
        update, state = transform.update(gradient(params), state, params)
        return optax.apply_updates(params, update), state

    for _ in range(count):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("guard", [NOTHING, chain(), ewc(0.0), mas(0.0), si(0.0), ema()])
def test_a_guard_with_nothing_to_hold_is_the_optimizer_bit_for_bit(guard):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    plain, inner = steps(optimizer)
    guarded, state = steps(as_transform(guard, optimizer))
    assert same_bits(plain, guarded) and same_bits(inner, state.optimizer)


@pytest.mark.parametrize("guard", [ewc(3.0), mas(3.0), si(3.0)])
def test_the_first_task_is_trained_freely(guard):
    plain, _ = steps(optax.adam(1e-2))
    guarded, _ = steps(as_transform(guard, optax.adam(1e-2)))
    np.testing.assert_allclose(flat(plain), flat(guarded), rtol=1e-6)


def test_gradients_are_guarded_before_the_optimizer_and_updates_after_it():
    seen = []

    def observe(gradient, update, state, params):
        seen.append((gradient, update))
        return state + 1

    guard = Guard(
        init=lambda params: jnp.zeros((), jnp.int32),
        gradient=lambda g, state, params: (jax.tree.map(lambda x: x + 1, g), {"one": jnp.ones(())}),
        update=lambda u, state, params: (jax.tree.map(lambda x: 2 * x, u), {}),
        observe=observe,
    )
    transform = as_transform(guard, optax.sgd(0.5))
    state = transform.init(PARAMS)
    assert float(state.metrics["one"]) == 0
    seen.clear()
    update, state = transform.update(GRADIENT, state, PARAMS)
    np.testing.assert_allclose(flat(update), -(flat(GRADIENT) + 1), rtol=1e-6)
    assert seen[0][0] is GRADIENT and same_bits(seen[0][1], update)
    assert int(state.guard) == 1 and float(state.metrics["one"]) == 1
    with pytest.raises(ValueError, match="parameters"):
        transform.update(GRADIENT, state)


def test_several_guards_act_in_order_and_keep_their_own_states():
    optimizer = optax.sgd(0.1)
    both = chain(ewc(2.0), si(0.5, storage="exact"), ema(0.9))
    params, state = steps(as_transform(both, optimizer), 3)
    alone, own = steps(as_transform(si(0.5, storage="exact"), optimizer), 3)
    assert same_bits(params, alone) and same_bits(state.guard[1], own.guard)
    assert set(state.metrics) == {"ewc_penalty", "si_penalty", "si_path"}
    importance = jax.tree.map(jnp.ones_like, params)
    state = end_task(both, state, params, (importance, None, None))
    assert same_bits(state.guard[0].anchor, params) and same_bits(state.guard[1].anchor, params)
    averaged = evaluated(both, state, params)
    _, reference = steps(as_transform(ema(0.9), optimizer), 3)
    np.testing.assert_allclose(flat(averaged), flat(reference.guard.average), rtol=1e-6)
    with pytest.raises(UserError, match="needs what it measures"):
        end_task(ewc(1.0), state, params)
    with pytest.raises(UserError, match="keep one"):
        chain(ema(), wise_ft())


def test_a_reset_optimizer_forgets_moments_but_not_the_schedule_or_the_guard():
    schedule = optax.linear_schedule(1e-2, 0.0, 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    transform = as_transform(si(1.0), optimizer)
    params, state = steps(transform, 7)
    fresh = reset_optimizer(optimizer, state, params)
    assert same_bits(fresh.guard, state.guard)
    counts = optax.tree.get_all_with_path(fresh.optimizer, "count")
    found = sorted((type(path[-1]).__name__, int(count)) for path, count in counts)
    assert sorted(count for _, count in found) == [0, 7], found
    moments = optax.tree.get(fresh.optimizer, "mu"), optax.tree.get(fresh.optimizer, "nu")
    assert not np.any(flat(moments))
    rate = np.asarray(schedule(7))
    update, _ = transform.update(GRADIENT, fresh, params)
    expected = -rate * (np.sign(flat(GRADIENT)) + 1e-4 * flat(params))
    np.testing.assert_allclose(flat(update), expected, rtol=1e-3, atol=1e-6)


def test_a_refused_step_leaves_the_guard_as_it_was():
    transform = as_transform(si(1.0), optax.sgd(0.1))
    state = init_state(PARAMS, transform, weighted_sum({"nll": 1.0}))
    broken = jax.tree.map(lambda leaf: leaf * jnp.inf, GRADIENT)
    combiner = weighted_sum({"nll": 1.0})
    after, metrics = guarded_update(state, {SUM: broken}, jnp.ones(()), combiner, transform)
    assert int(metrics["skipped"]) == 1 and same_bits(after.opt_state, state.opt_state)


@pytest.mark.parametrize("guard", [ewc(1.0), mas(1.0), si(1.0)], ids=["ewc", "mas", "si"])
def test_the_state_is_at_most_two_copies_of_the_parameters(guard):
    size = sum(x.nbytes for x in jax.tree.leaves(PARAMS))
    state = guard.init(PARAMS)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) <= 2 * size + 16
    after = guard.end_of_task(state, PARAMS, jax.tree.map(jnp.ones_like, PARAMS))
    assert [x.shape for x in bits(after)] == [x.shape for x in bits(state)]


def test_anchors_survive_the_donation_of_the_parameters():
    guard = chain(ewc(1.0), si(1.0), wise_ft())
    params = like(PARAMS, flat(PARAMS))
    state = guard.init(params)
    state = guard.end_of_task(state, params, (params, None, None))
    jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(params)
    np.testing.assert_array_equal(flat(state[0].anchor), flat(PARAMS))
    np.testing.assert_array_equal(flat(state[2].start), flat(PARAMS))
