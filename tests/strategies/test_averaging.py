"""Averages and merges along a stream."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combiners.trees import flat, same_bits, tree

from jaxforget.engine.errors import UserError
from jaxforget.strategies import as_transform, ema, max_merge, snapshot, task_average, wise_ft

MODELS = [tree(np.random.default_rng(k)) for k in range(4)]
START, *ENDS = MODELS


def ended(guard, models=tuple(ENDS)):
    state = guard.init(START)
    for params in models:
        state = guard.end_of_task(state, params, None)
    return state


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_the_moving_average_follows_every_step(decay):
    guard = ema(decay)
    transform = as_transform(guard, optax.sgd(0.1, momentum=0.5))
    params, state = START, transform.init(START)
    expected = flat(START)
    for gradient in (*ENDS, *ENDS):
        update, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        expected = decay * expected + (1 - decay) * flat(params)
    np.testing.assert_allclose(
        flat(guard.evaluated(state.guard, params)), expected, rtol=1e-5, atol=1e-6
    )
    if decay == 0:
        assert same_bits(guard.evaluated(state.guard, params), params)


def test_the_tasks_average_is_their_mean_and_the_model_itself_before():
    guard = task_average()
    assert same_bits(guard.evaluated(guard.init(START), MODELS[2]), MODELS[2])
    mean = np.mean([flat(params) for params in ENDS], axis=0)
    np.testing.assert_allclose(
        flat(guard.evaluated(ended(guard), START)), mean, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("anchor, start", [("start", START), ("previous", ENDS[-1])])
def test_wise_ft_mixes_and_gives_both_ends_bit_for_bit(share, anchor, start):
    guard = wise_ft(share, anchor=anchor)
    state = ended(guard) if guard.end_of_task else guard.init(START)
    here = tree(np.random.default_rng(9))
    found = guard.evaluated(state, here)
    np.testing.assert_allclose(
        flat(found), (1 - share) * flat(start) + share * flat(here), rtol=1e-5, atol=1e-6
    )
    if share in (0, 1):
        assert same_bits(found, here if share else start)


def test_max_merge_takes_task_vectors_not_weights_of_largest_magnitude():
    guard = max_merge(0.8)
    vectors = np.stack([flat(params) - flat(START) for params in ENDS])
    largest = vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])]
    assert (largest < 0).any()
    found = flat(guard.evaluated(ended(guard), START))
    np.testing.assert_allclose(found, flat(START) + 0.8 * largest, rtol=1e-5, atol=1e-6)
    first = guard.evaluated(guard.init(START), ENDS[0])
    assert same_bits(first, ENDS[0])


def test_a_snapshot_is_the_model_before_this_task():
    guard = snapshot()
    assert same_bits(guard.previous(guard.init(START)), START)
    assert same_bits(guard.previous(ended(guard)), ENDS[-1])


def test_averages_of_half_precision_models_are_float32():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), START)
    guard = ema(0.999)
    state = guard.init(half)
    assert {x.dtype for x in jax.tree.leaves(state.average)} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in jax.tree.leaves(guard.evaluated(state, half))} == {
        jnp.dtype(jnp.bfloat16)
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: ema(1.0),
        lambda: wise_ft(1.2),
        lambda: wise_ft(0.5, anchor="first"),  # pyright: ignore[reportArgumentType]
        lambda: max_merge(-1.0),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UserError):
        make()
