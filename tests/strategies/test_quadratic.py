"""EWC and MAS against what their parabolas must give."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combiners.trees import flat, like, same_bits, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.engine.errors import UserError
from jaxforget.strategies import as_transform, diagonal, end_task, ewc, mas

WEIGHT = 1.5


def positive(rng):
    return jax.tree.map(jnp.abs, tree(rng))


@partial(jax.jit, static_argnums=0)
def held(guard, state, params):
    zero = jax.tree.map(jnp.zeros_like, params)
    return guard.gradient(zero, state, params)


def tasks(seed, count):
    rng = np.random.default_rng(seed)
    return [(tree(rng), positive(rng)) for _ in range(count)], tree(rng)


EACH, LAST = ewc(WEIGHT), ewc(WEIGHT, anchors="last", gamma=0.7)
FADED, MAS = ewc(WEIGHT, gamma=0.7), mas(WEIGHT, keep=0.5, take=0.5)


def ended(guard, some, start):
    state = guard.init(start)
    for params, importance in some:
        state = guard.end_of_task(state, params, importance)
    return state


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
def test_one_anchor_is_the_sum_of_one_penalty_a_task(seed, count):
    some, here = tasks(seed, count)
    for guard, gamma in ((EACH, 1.0), (FADED, 0.7)):
        gradient, metrics = held(guard, ended(guard, some, here), here)
        value, slope, theta = 0.0, np.zeros_like(flat(here)), flat(here)
        for age, (params, importance) in enumerate(reversed(some)):
            f = gamma**age * flat(importance)
            value += WEIGHT / 2 * (f * (theta - flat(params)) ** 2).sum()
            slope += WEIGHT * f * (theta - flat(params))
        np.testing.assert_allclose(flat(gradient), slope, rtol=2e-5, atol=2e-5)
        assert float(metrics["ewc_penalty"]) == pytest.approx(value, rel=2e-5)


def test_online_ewc_and_mas_hold_everything_to_the_newest_anchor():
    some, here = tasks(3, 3)
    for guard, keep, take, factor, name in (
        (LAST, 0.7, 1.0, WEIGHT / 2, "ewc_penalty"),
        (MAS, 0.5, 0.5, WEIGHT, "mas_penalty"),
    ):
        gradient, metrics = held(guard, ended(guard, some, here), here)
        importance = np.zeros_like(flat(here))
        for _, new in some:
            importance = keep * importance + take * flat(new)
        gap = flat(here) - flat(some[-1][0])
        np.testing.assert_allclose(flat(gradient), 2 * factor * importance * gap, rtol=1e-5)
        assert float(metrics[name]) == pytest.approx(factor * (importance * gap**2).sum(), rel=1e-5)


@pytest.mark.parametrize("guard", [EACH, LAST, MAS])
def test_the_added_gradient_is_that_of_the_penalty_it_reports(guard):
    some, here = tasks(5, 2)
    state = ended(guard, some, here)
    direction = tree(np.random.default_rng(6))
    name = "mas_penalty" if guard is MAS else "ewc_penalty"

    def penalty(shift):
        moved = like(here, flat(here) + shift * flat(direction))
        return float(held(guard, state, moved)[1][name])

    slope = (penalty(0.05) - penalty(-0.05)) / 0.1
    gradient = flat(held(guard, state, here)[0])
    assert slope == pytest.approx(gradient @ flat(direction), rel=1e-3)


def test_ewc_on_a_linear_model_ends_at_the_closed_form():
    """With the exact Fisher information of a Gaussian model with independent inputs, EWC's minimum
    is the least-squares solution over both tasks' data."""
    rng = np.random.default_rng(1)
    width, rows = 5, 40
    old, new = (np.linalg.qr(rng.normal(size=(rows, width)))[0] * 3 for _ in range(2))
    old = old * rng.uniform(0.5, 2.0, size=width)  # orthogonal columns: the Hessian is diagonal
    y_old, y_new = rng.normal(size=rows), rng.normal(size=rows)
    first = np.linalg.lstsq(old, y_old, rcond=None)[0]
    hessian = np.diag(old.T @ old)
    expected = np.linalg.solve(
        new.T @ new + np.diag(hessian), new.T @ y_new + np.diag(hessian) @ first
    )
    guard = ewc(1.0)
    transform = as_transform(guard, optax.sgd(0.02))
    params = {"w": jnp.asarray(first, jnp.float32)}
    state = end_task(
        guard, transform.init(params), params, {"w": jnp.asarray(hessian, jnp.float32)}
    )
    x, y = jnp.asarray(new, jnp.float32), jnp.asarray(y_new, jnp.float32)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: 0.5 * jnp.square(x @ p["w"] - y).sum())(params)
        update, state = transform.update(gradient, state, params)
        return (optax.apply_updates(params, update), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), length=500)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-4, atol=1e-5)


def test_the_fisher_information_of_a_gaussian_model_is_its_hessian():
    """The empirical one, with targets that the model itself would give."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20000, 3)) * [0.5, 1.0, 2.0]
    w = np.array([1.0, -1.0, 0.5])
    y = x @ w + rng.normal(size=len(x))
    found = diagonal(
        lambda p, row: -0.5 * (row["x"] @ p["w"] - row["y"]) ** 2,
        {"w": jnp.asarray(w, jnp.float32)},
        [{"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}],
    )
    np.testing.assert_allclose(found["w"], (x**2).mean(0), rtol=0.05)


def test_a_task_does_not_hold_itself_and_a_strong_weight_holds_almost_everything():
    guard = ewc(1e4)
    transform = as_transform(guard, optax.sgd(1e-4))
    params = tree(np.random.default_rng(0))
    state = transform.init(params)
    target = jax.tree.map(lambda p: p + 1, params)

    def run(params, state, count=400):
        def step(carry, _):
            params, state = carry
            gradient = jax.tree.map(jnp.subtract, params, target)
            update, state = transform.update(gradient, state, params)
            return (optax.apply_updates(params, update), state), None

        return jax.lax.scan(step, (params, state), length=count)[0]

    free, _ = run(params, state, 1)
    np.testing.assert_allclose(flat(free) - flat(params), 1e-4, rtol=1e-2)
    state = end_task(guard, state, params, jax.tree.map(jnp.ones_like, params))
    bound, _ = run(params, state)
    np.testing.assert_allclose(flat(bound) - flat(params), 1 / (1 + 1e4), rtol=1e-2)


def test_a_model_in_half_precision_is_held_by_float32_copies():
    some, here = tasks(8, 1)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), here)
    state = ended(EACH, some, half)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    gradient, _ = held(EACH, state, half)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    assert not same_bits(gradient, jax.tree.map(jnp.zeros_like, half))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ewc(-1.0),
        lambda: ewc(1.0, gamma=1.5),
        lambda: ewc(1.0, anchors="all"),  # pyright: ignore[reportArgumentType]
        lambda: ewc(1.0, kind="exact"),  # pyright: ignore[reportArgumentType]
        lambda: mas(1.0, keep=-1.0),
        lambda: mas(float("nan")),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UserError, match="ewc|mas"):
        make()
