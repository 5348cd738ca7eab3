"""Small quadratic programs: the optimum that SciPy finds in float64, at float32 accuracy."""

import jax
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.combiners import faces

cone = jax.jit(faces.cone_multipliers)
shortest = jax.jit(faces.min_norm_weights)
averse = jax.jit(faces.conflict_averse_weights, static_argnums=1)
basis = jax.jit(faces.orthonormal_rows)


def columns(seed, k, size=40, shared=0.5, spread=1.0):
    """Columns of very different lengths with a common part."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(size, k)) + shared * rng.normal(size=(size, 1))
    return g * 10.0 ** rng.uniform(-spread, spread, size=k), rng.normal(size=size)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 3, 9]), shared=st.floats(0, 3))
def test_cone_multipliers_are_nonnegative_least_squares(seed, k, shared):
    g, x = columns(seed, k, shared=shared)
    multipliers, _ = cone(np.float32(g.T @ g), np.float32(g.T @ x))
    exact, _ = scipy.optimize.nnls(g, x)
    multipliers = np.asarray(multipliers, np.float64)
    assert (multipliers >= 0).all()
    moved, wanted = x - g @ multipliers, x - g @ exact
    size = np.linalg.norm(x)
    assert np.linalg.norm(moved - wanted) <= 3e-6 * size
    assert ((moved @ g) <= 1e-6 * size * np.linalg.norm(g, axis=0)).all()


def test_cone_inverse_refines_on_the_binding_set():
    g, x = columns(3, 4)
    k, b = g.T @ g, g.T @ x
    multipliers, inverse = map(np.asarray, cone(np.float32(k), np.float32(b)))
    binding = multipliers > 0
    assert 0 < binding.sum() < 4
    expected = np.linalg.inv(k[np.ix_(binding, binding)])
    np.testing.assert_allclose(inverse[np.ix_(binding, binding)], expected, rtol=1e-4)
    assert not inverse[~binding].any() and not inverse[:, ~binding].any()


@pytest.mark.parametrize("zero", [(0,), (1, 2), (0, 1, 2)])
def test_cone_ignores_zero_and_repeated_columns(zero):
    g, x = columns(5, 3)
    g[:, list(zero)] = 0
    doubled = np.concatenate([g, g[:, ::-1]], axis=1)
    multipliers, _ = cone(np.float32(doubled.T @ doubled), np.float32(doubled.T @ x))
    exact, _ = scipy.optimize.nnls(g, x)
    moved = x - doubled @ np.asarray(multipliers, np.float64)
    np.testing.assert_allclose(moved, x - g @ exact, atol=3e-6 * np.linalg.norm(x))


def test_cone_does_nothing_where_nothing_is_violated():
    g, _ = columns(6, 3)
    x = -g.sum(axis=1) * 0.0 - np.linalg.pinv(g).T @ np.ones(3)
    multipliers, _ = cone(np.float32(g.T @ g), np.float32(g.T @ x))
    np.testing.assert_array_equal(multipliers, 0.0)


def on_simplex(function, k):
    """Minimum over the simplex by SLSQP from several starts."""
    rule = {"type": "eq", "fun": lambda w: w.sum() - 1}
    starts = [np.full(k, 1 / k), *np.eye(k) * 0.9 + 0.1 / k]
    found = [
        scipy.optimize.minimize(
            function,
            start / start.sum(),
            bounds=[(0, 1)] * k,
            constraints=rule,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        for start in starts
    ]
    return min(result.fun for result in found)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 2, 5]), shared=st.floats(0, 3))
def test_min_norm_weights_are_the_shortest_point_of_the_hull(seed, k, shared):
    g, _ = columns(seed, k, shared=shared, spread=0.4)
    gram = g.T @ g / np.mean(g**2)
    w = np.asarray(shortest(np.float32(gram)), np.float64)
    assert (w >= 0).all() and w.sum() == pytest.approx(1, abs=1e-6)
    best = on_simplex(lambda w: w @ gram @ w, k)
    assert w @ gram @ w <= best * (1 + 1e-5) + 1e-5


@pytest.mark.parametrize("ratio", [1e-3, 0.5, 1.0, 40.0])
def test_opposed_gradients_cancel_in_the_shortest_point(ratio):
    gram = np.float32([[1, -ratio], [-ratio, ratio**2]])
    w = shortest(gram)
    np.testing.assert_allclose(w, [ratio / (1 + ratio), 1 / (1 + ratio)], rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.sampled_from([2, 3, 4]),
    c=st.sampled_from([0.1, 0.5, 0.9]),
    shared=st.floats(-2, 2),
)
def test_conflict_averse_weights_minimise_their_dual(seed, k, c, shared):
    g, _ = columns(seed, k, shared=shared, spread=0.5)
    g = g / np.abs(g).max()
    total = g.sum(axis=1)

    def dual(w):
        return (g @ w) @ total + c * np.linalg.norm(total) * np.linalg.norm(g @ w)

    w = np.asarray(averse(np.float32(g.T @ g), c), np.float64)
    assert (w >= 0).all() and w.sum() == pytest.approx(1, abs=1e-6)
    assert dual(w) <= on_simplex(dual, k) + 1e-5 * (g**2).sum()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 3, 9]))
def test_orthonormal_rows_make_an_orthonormal_basis_of_the_span(seed, k):
    g, x = columns(seed, k)
    rows = np.asarray(basis(np.float32(g.T @ g)), np.float64)
    q = g @ rows.T
    np.testing.assert_allclose(q.T @ q, np.eye(k), atol=2e-5)
    exact = np.linalg.qr(g)[0]
    np.testing.assert_allclose(q @ (q.T @ x), exact @ (exact.T @ x), atol=1e-4)


def test_dependent_vectors_get_rows_of_zeros():
    g, _ = columns(1, 3)
    g = np.stack([g[:, 0], 2 * g[:, 0], np.zeros(40), g[:, 1]], axis=1)
    rows = np.asarray(basis(np.float32(g.T @ g)))
    assert not rows[1].any() and not rows[2].any() and rows[0].any() and rows[3].any()
