"""Synaptic intelligence: the path integral is the loss it took off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combiners.trees import bits, flat, like, same_bits, tree

from jaxforget.engine.errors import UserError
from jaxforget.strategies import as_transform, end_task, si
from jaxforget.strategies.path_integral import rounded_at_random

START = tree(np.random.default_rng(0))
CURVES = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.2, tree(np.random.default_rng(1)))


def loss(params):
    return 0.5 * sum(
        (c * p * p).sum() for c, p in zip(*map(jax.tree.leaves, (CURVES, params)), strict=True)
    )


def trained(guard, optimizer, count, params=START, state=None):
    transform = as_transform(guard, optimizer)
    state = transform.init(params) if state is None else state

    @jax.jit
    def run(params, state):
        def step(carry, _):
            params, state = carry
            update, state = transform.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, update), state), None

        return jax.lax.scan(step, (params, state), length=count)[0]

    return run(params, state)


@pytest.mark.parametrize("storage, tolerance", [("exact", 0.01), ("compact", 0.02)])
def test_the_path_integral_is_the_drop_of_the_loss(storage, tolerance):
    params, state = trained(si(0.0, storage=storage), optax.adam(1e-3), 500)
    drop = float(loss(START) - loss(params))
    path = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.guard.path)
    assert drop > 1
    assert flat(path).sum() == pytest.approx(drop, rel=tolerance)


def test_every_entry_integrates_its_own_gradient_times_step():
    params, state = trained(si(0.0, storage="exact"), optax.sgd(0.01, momentum=0.9), 50)
    theta, curve = flat(START), flat(CURVES)
    path, velocity = np.zeros_like(theta), np.zeros_like(theta)
    for _ in range(50):
        gradient = curve * theta
        velocity = 0.9 * velocity + gradient
        path += gradient * 0.01 * velocity
        theta = theta - 0.01 * velocity
    np.testing.assert_allclose(flat(params), theta, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flat(state.guard.path), path, rtol=1e-3, atol=1e-5)


def test_importance_is_the_clamped_integral_over_the_squared_way():
    guard = si(0.5, damping=0.1, storage="exact")
    state = guard.init(START)
    some = [tree(np.random.default_rng(k)) for k in (2, 3, 4)]
    importance, anchor = np.zeros_like(flat(START)), flat(START)
    for path, params in ((some[0], some[1]), (some[1], some[2])):
        state = guard.end_of_task(state._replace(path=path), params, None)
        importance += np.maximum(flat(path), 0) / ((flat(params) - anchor) ** 2 + 0.1)
        anchor = flat(params)
        np.testing.assert_allclose(flat(state.importance), importance, rtol=1e-5)
        assert not flat(state.path).any() and int(state.steps) == 0
    here = some[0]
    gradient, metrics = guard.gradient(jax.tree.map(jnp.zeros_like, here), state, here)
    gap = flat(here) - anchor
    np.testing.assert_allclose(flat(gradient), 2 * 0.5 * importance * gap, rtol=1e-5)
    assert float(metrics["si_penalty"]) == pytest.approx(
        0.5 * (importance * gap**2).sum(), rel=1e-5
    )


def test_the_penalty_does_not_enter_its_own_integral():
    guard = si(1.0, storage="exact")
    transform = as_transform(guard, optax.sgd(0.1))
    state = transform.init(START)
    state = state._replace(guard=state.guard._replace(importance=CURVES))
    away = like(START, flat(START) + 1)
    gradient = tree(np.random.default_rng(5))
    update, state = transform.update(gradient, state, away)
    expected = -0.1 * (flat(gradient) + 2 * flat(CURVES))
    np.testing.assert_allclose(flat(update), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        flat(state.guard.path), -flat(gradient) * flat(update), rtol=1e-3, atol=1e-4
    )


def test_compact_storage_follows_the_exact_one_and_repeats_bit_for_bit():
    compact, exact = si(0.0), si(0.0, storage="exact")
    _, one = trained(compact, optax.sgd(1e-3), 300)
    _, two = trained(compact, optax.sgd(1e-3), 300)
    _, reference = trained(exact, optax.sgd(1e-3), 300)
    assert same_bits(one.guard, two.guard)
    path = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), one.guard.path)
    a, b = flat(path), flat(reference.guard.path)
    assert np.corrcoef(a, b)[0, 1] > 0.99
    assert a.sum() == pytest.approx(b.sum(), rel=0.02)
    # the nearest bfloat16 every time would have stood still long ago
    nearest = jnp.zeros((), jnp.bfloat16)
    for _ in range(2000):
        nearest = (nearest.astype(jnp.float32) + 1e-3).astype(jnp.bfloat16)
    assert float(nearest) < 1


def test_rounding_at_random_is_exact_in_expectation_and_gives_neighbours():
    x = jnp.asarray(
        np.random.default_rng(0).normal(size=(64,)) * 10.0 ** np.arange(-8, 8).repeat(4),
        jnp.float32,
    )
    many = jax.vmap(lambda step: rounded_at_random(x, step))(jnp.arange(4000))
    wide = np.asarray(many.astype(jnp.float32), np.float64)
    low = np.asarray(x).view(np.uint32) & np.uint32(0xFFFF0000)
    below, above = low.view(np.float32), (low + np.uint32(0x10000)).view(np.float32)
    assert ((wide == below) | (wide == above)).all()
    gap = np.abs(above - below).astype(np.float64)
    np.testing.assert_array_less(
        np.abs(wide.mean(0) - np.asarray(x, np.float64)), 4 * gap / np.sqrt(4000)
    )
    exact = jnp.asarray([0.0, -0.0, 1.5, jnp.inf], jnp.float32)
    assert same_bits(rounded_at_random(exact, jnp.int32(3)), exact.astype(jnp.bfloat16))


def test_the_strategy_holds_what_was_important():
    """Two quadratic tasks: weights that the first needed move less than free ones."""
    guard = si(1.0, damping=1e-3, storage="exact")
    optimizer = optax.sgd(5e-3)
    params, state = trained(guard, optimizer, 400)
    state = end_task(guard, state, params)
    shift = jax.tree.map(lambda leaf: leaf + 1.0, params)
    transform = as_transform(guard, optimizer)

    def drawn(carry, _):
        p, s = carry
        gradient = jax.tree.map(jnp.subtract, p, shift)
        update, s = transform.update(gradient, s, p)
        return (optax.apply_updates(p, update), s), None

    (held, _), _ = jax.lax.scan(drawn, (params, state), length=2000)
    way, importance = flat(held) - flat(params), flat(state.guard.importance)
    np.testing.assert_allclose(way, 1 / (1 + 2 * importance), rtol=1e-2)


@pytest.mark.parametrize("options", [{"damping": 0.0}, {"weight": -1.0}, {"storage": "half"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="si"):
        si(**{"weight": 1.0, **options})


def test_bits_are_what_the_state_says():
    state = si(1.0).init(START)
    assert {x.dtype for x in jax.tree.leaves((state.path, state.importance))} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert len(bits(state)) == 3 * len(jax.tree.leaves(START)) + 1
