"""The fading L1 penalty against automatic differentiation and a float64 run by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.edits import l1_decay, l1_schedule
from jaxforget.engine.errors import UserError

PARAMS = {"a": {"w": jnp.float32([[1.0, -2.0], [0.0, 3.0]])}, "b": jnp.float32([-0.1, 0.0, 0.3])}


def loss(params, x):
    hidden = jnp.tanh(x @ params["a"]["w"])
    return jnp.square(hidden).mean() + jnp.square(params["b"] - 1).sum()


def norm1(params):
    """L1 norm with subgradient 0 at 0."""
    return sum((x * jax.lax.stop_gradient(jnp.sign(x))).sum() for x in jax.tree.leaves(params))


def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), ours, theirs)


def batch(seed):
    return jnp.float32(np.random.default_rng(seed).normal(size=(5, 2)))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.05, momentum=0.9),
        optax.adamw(0.05),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.05)),
    ],
    ids=["sgd", "adamw", "clipped"],
)
def test_a_run_equals_one_on_the_penalised_loss(optimizer):
    steps, stop, scale = 8, 3, 0.3
    ours, theirs = PARAMS, PARAMS
    chain = optax.chain(l1_decay(scale, steps=steps, stop=stop), optimizer)
    state, other = chain.init(ours), optimizer.init(theirs)
    for step in range(steps):
        update, state = jax.jit(chain.update)(jax.grad(loss)(ours, batch(step)), state, ours)
        ours = optax.apply_updates(ours, update)
        weight = max(scale * (1 - step / (steps - stop)), 0.0)
        gradient = jax.grad(lambda p, x, w=weight: loss(p, x) + w * norm1(p))(theirs, batch(step))
        update, other = optimizer.update(gradient, other, theirs)
        theirs = optax.apply_updates(theirs, update)
        close(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.data())
def test_the_weight_falls_in_stairs_to_zero(steps, data):
    stop = data.draw(st.integers(0, steps - 1))
    every = data.draw(st.integers(1, steps - stop))
    weight = l1_schedule(0.2, steps=steps, stop=stop, every=every)
    end = steps - stop
    for step in range(steps + 2):
        epoch = step // every
        want = 0.2 * (1 - epoch / (end / every)) if step < end else 0.0
        np.testing.assert_allclose(weight(step), want, rtol=1e-5, atol=1e-7)


def test_the_published_default_starts_at_5e_4_and_reaches_zero_before_the_last_steps():
    weight = l1_schedule(steps=10, stop=2)
    np.testing.assert_allclose([weight(0), weight(4), weight(8), weight(9)], [5e-4, 2.5e-4, 0, 0])


def test_zeros_are_left_alone_and_the_dtype_stays():
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.bfloat16), PARAMS)
    decay = l1_decay(0.5, steps=4)
    added, state = decay.update(nothing, decay.init(PARAMS), PARAMS)
    jax.tree.map(lambda a, p: np.testing.assert_array_equal(a, 0.5 * np.sign(p)), added, PARAMS)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(added))
    assert state.count == 1


def test_a_scale_of_zero_is_the_identity_bit_for_bit():
    decay = l1_decay(0.0, steps=4)
    gradient = jax.tree.map(lambda leaf: -0.0 * leaf, PARAMS)
    same, _ = decay.update(gradient, decay.init(PARAMS), PARAMS)
    assert same is gradient


def test_training_with_it_makes_irrelevant_parameters_vanish():
    """Plain SGD on a loss that reads one of two parameters: the other falls to 0 and stays."""
    params = {"w": jnp.float32([0.5, 0.5])}
    chain = optax.chain(l1_decay(0.2, steps=400), optax.sgd(0.02))
    state = chain.init(params)
    step = jax.jit(lambda g, s, p: chain.update(g, s, p))
    for _ in range(400):
        gradient = {"w": jnp.stack([params["w"][0] - 1.0, jnp.zeros(())])}
        update, state = step(gradient, state, params)
        params = optax.apply_updates(params, update)
    assert params["w"][0] > 0.9 and abs(params["w"][1]) < 5e-3


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="scale must be a finite number >= 0"):
        l1_decay(-1.0, steps=4)
    with pytest.raises(UserError, match="steps must be an integer >= 1"):
        l1_decay(steps=0)
    with pytest.raises(UserError, match="stop must be an integer from 0 to 3"):
        l1_decay(steps=4, stop=4)
    with pytest.raises(UserError, match="it never falls"):
        l1_decay(steps=4, stop=2, every=3)
    decay = l1_decay(steps=4)
    with pytest.raises(ValueError, match="needs the parameters"):
        decay.update(PARAMS, decay.init(PARAMS))
