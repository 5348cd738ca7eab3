"""PCGrad, CAGrad, MGDA, Nash-MTL and the orthogonal retain step against float64 NumPy."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
import scipy.optimize
from combiners.trees import conflicting, flat, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.combiners import (
    cagrad,
    mgda,
    nash_mtl,
    orthogonal_retain,
    pcgrad,
    weighted_sum,
)
from jaxforget.engine.errors import UserError

seeds = st.integers(0, 10**6)
TWO = {"forget": 1.5, "retain": 0.5}
THREE = {"forget": 1.0, "retain": 2.0, "align": 0.7}


@partial(jax.jit, static_argnums=0)
def run(combiner, gradients):
    direction, _, metrics = combiner.combine(gradients, combiner.init(gradients["forget"]), {})
    return direction, metrics


def summed(gradients):
    return jax.jit(weighted_sum(TWO).combine)(gradients, (), {})[0]


PCGRAD2, PCGRAD3 = pcgrad(TWO), pcgrad(THREE)
MGDA2, MGDA3, MGDA_UNIT = mgda(TWO), mgda(THREE), mgda(TWO, normalise=True)
CAGRAD2, CAGRAD3 = cagrad(TWO, c=0.4), cagrad(THREE, c=0.8)
NASH2, NASH3 = nash_mtl(TWO), nash_mtl(THREE)
ORTHOGONAL = orthogonal_retain(2.0)


def scaled(weights, gradients):
    return {name: weight * flat(gradients[name]) for name, weight in weights.items()}


def pcgrad_reference(h, orders):
    """The published algorithm, with the order of the others given for each gradient."""
    total = 0
    for name, order in orders.items():
        g = h[name].copy()
        for other in order:
            product = g @ h[other]
            if other != name and product < 0:
                g -= product / (h[other] @ h[other]) * h[other]
        total = total + g
    return total


@settings(max_examples=25, deadline=None)
@given(seed=seeds, shared=st.floats(-3, 1))
def test_pcgrad_of_two_terms_is_the_published_algorithm(seed, shared):
    g = conflicting(seed, shared=shared)
    h = scaled(TWO, g)
    expected = pcgrad_reference(h, dict.fromkeys(TWO, list(TWO)))
    direction, metrics = run(PCGRAD2, g)
    np.testing.assert_allclose(flat(direction), expected, atol=2e-6 * np.abs(expected).max() + 1e-6)
    a, b = h["forget"], h["retain"]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert float(metrics["cosine_forget_retain"]) == pytest.approx(cosine, abs=1e-5)


def test_pcgrad_of_three_terms_follows_some_order_and_orders_vary_with_the_step():
    g = conflicting(4, names=tuple(THREE), shared=-1.5)
    h = scaled(THREE, g)
    others = list(itertools.permutations(THREE))
    possible = [
        pcgrad_reference(h, dict(zip(THREE, orders, strict=True)))
        for orders in itertools.product(others, repeat=3)
    ]
    state, seen = PCGRAD3.init(g["forget"]), set()
    step = jax.jit(PCGRAD3.combine)
    for _ in range(12):
        direction, state, _ = step(g, state, {})
        gaps = [np.abs(flat(direction) - each).max() for each in possible]
        assert min(gaps) < 1e-4
        seen.add(np.round(flat(direction), 3).tobytes())
    assert int(state) == 12 and len(seen) > 1


def test_pcgrad_without_conflict_is_the_weighted_sum():
    g = conflicting(1, shared=2.0)
    direction, metrics = run(PCGRAD2, g)
    assert float(metrics["cosine_forget_retain"]) > 0
    np.testing.assert_allclose(flat(direction), flat(summed(g)), rtol=3e-7, atol=1e-6)


def cagrad_reference(h, c):
    """The primal problem: the best worst gain within the ball around the sum."""
    stack = np.stack(list(h.values()))
    total = stack.sum(axis=0)
    basis = np.linalg.qr(stack.T)[0]
    rows, centre = stack @ basis, total @ basis
    radius = c * np.linalg.norm(centre)
    best = -np.inf
    for start in (centre, centre + 0.1 * radius * np.ones_like(centre)):
        result = scipy.optimize.minimize(
            lambda z: -z[-1],
            np.append(start, (rows @ start).min()),
            constraints=[
                {"type": "ineq", "fun": lambda z: rows @ z[:-1] - z[-1]},
                {"type": "ineq", "fun": lambda z: radius**2 - ((z[:-1] - centre) ** 2).sum()},
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        best = max(best, -result.fun)
    return total, best


@pytest.mark.parametrize(("combiner", "weights", "c"), [(CAGRAD2, TWO, 0.4), (CAGRAD3, THREE, 0.8)])
@settings(max_examples=20, deadline=None)
@given(seed=seeds, shared=st.floats(-2, 1))
def test_cagrad_attains_the_best_worst_gain_inside_its_ball(combiner, weights, c, seed, shared):
    g = conflicting(seed, names=tuple(weights), shared=shared)
    h = scaled(weights, g)
    total, best = cagrad_reference(h, c)
    direction = flat(run(combiner, g)[0])
    assert np.linalg.norm(direction - total) <= c * np.linalg.norm(total) * (1 + 1e-5)
    size = max(v @ v for v in h.values())
    assert min(v @ direction for v in h.values()) >= best - 2e-4 * size


def test_cagrad_at_radius_zero_is_the_weighted_sum_bit_for_bit():
    g = conflicting(2)
    assert same_bits(run(cagrad(TWO, c=0), g)[0], summed(g))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, shared=st.floats(-3, 3))
def test_mgda_of_two_terms_is_the_closed_form(seed, shared):
    g = conflicting(seed, shared=shared)
    a, b = scaled(TWO, g).values()
    share = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
    expected = share * a + (1 - share) * b
    direction = flat(run(MGDA2, g)[0])
    np.testing.assert_allclose(direction, expected, atol=1e-5 * np.abs([a, b]).max())


@settings(max_examples=25, deadline=None)
@given(seed=seeds, shared=st.floats(-1, 3))
def test_mgda_lowers_every_term_or_stops(seed, shared):
    g = conflicting(seed, names=tuple(THREE), shared=shared)
    h = scaled(THREE, g)
    d = flat(run(MGDA3, g)[0])
    longest = max(np.linalg.norm(v) for v in h.values())
    for v in h.values():  # the shortest point of the hull: <h, d> >= ||d||^2 for every h
        assert v @ d >= d @ d - 2e-5 * longest * max(np.linalg.norm(v), np.linalg.norm(d))


def test_mgda_with_unit_gradients_bisects_the_angle():
    g = conflicting(7, spread=2.0)
    a, b = (v / np.linalg.norm(v) for v in scaled(TWO, g).values())
    np.testing.assert_allclose(flat(run(MGDA_UNIT, g)[0]), 0.5 * (a + b), atol=1e-6)


@pytest.mark.parametrize(("combiner", "weights"), [(NASH2, TWO), (NASH3, THREE)])
@settings(max_examples=20, deadline=None)
@given(seed=seeds, shared=st.floats(-0.9, 2))
def test_nash_direction_gains_the_inverse_of_each_multiplier(combiner, weights, seed, shared):
    g = conflicting(seed, names=tuple(weights), shared=shared)
    h = np.stack(list(scaled(weights, g).values()), axis=1)
    d = flat(run(combiner, g)[0])
    multipliers = np.linalg.lstsq(h, d, rcond=None)[0]
    np.testing.assert_allclose((h.T @ d) * multipliers, 1.0, rtol=2e-3)
    assert (multipliers > 0).all()


def test_nash_direction_does_not_feel_the_scale_of_a_gradient():
    g = conflicting(3)
    louder = {"forget": g["forget"], "retain": jax.tree.map(lambda x: 50 * x, g["retain"])}
    np.testing.assert_allclose(flat(run(NASH2, g)[0]), flat(run(NASH2, louder)[0]), rtol=2e-4)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, shared=st.floats(-3, 3))
def test_orthogonal_retain_adds_nothing_along_the_forget_gradient(seed, shared):
    g = conflicting(seed, shared=shared)
    f, r = flat(g["forget"]), flat(g["retain"])
    direction, metrics = run(ORTHOGONAL, g)
    expected = f + 2 * (r - (f @ r) / (f @ f) * f)
    np.testing.assert_allclose(flat(direction), expected, atol=1e-5 * np.abs(expected).max())
    rest = (flat(direction) - f) @ f
    assert abs(rest) <= 1e-6 * np.linalg.norm(f) * (2 * np.linalg.norm(r) + np.linalg.norm(f))
    assert float(metrics["removed_share"]) == pytest.approx(
        abs(f @ r) / np.linalg.norm(f) / np.linalg.norm(r), abs=1e-5
    )


def test_orthogonal_retain_without_a_forget_gradient_is_retain_alone():
    g = conflicting(1)
    g["forget"] = jax.tree.map(lambda x: 0 * x, g["forget"])
    np.testing.assert_array_equal(flat(run(ORTHOGONAL, g)[0]), 2 * flat(g["retain"]))


@pytest.mark.parametrize("combiner", [PCGRAD2, CAGRAD2, MGDA2, MGDA_UNIT, NASH2, ORTHOGONAL])
def test_a_zero_gradient_never_makes_a_direction_that_is_not_finite(combiner):
    g = conflicting(1)
    for zero in (("retain",), ("forget",), ("forget", "retain")):
        some = {k: jax.tree.map(lambda x, k=k, z=zero: x * (k not in z), v) for k, v in g.items()}
        assert np.isfinite(flat(run(combiner, some)[0])).all()


@pytest.mark.parametrize("combiner", [PCGRAD2, CAGRAD2, MGDA2, NASH2, ORTHOGONAL])
def test_terms_must_be_the_combiners(combiner):
    with pytest.raises(UserError, match=r"no weight or use for: \['align'\]"):
        run(combiner, conflicting(0, names=("forget", "retain", "align")))
    with pytest.raises(UserError, match=r"no terms: \['retain'\]"):
        run(combiner, conflicting(0, names=("forget",)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pcgrad({}), "pcgrad: needs at least one weight"),
        (lambda: mgda({"a": -1.0}), "mgda: the weight of 'a' must be a finite number >= 0"),
        (lambda: cagrad({"a": 1.0}, c=1.0), "cagrad: c must be below 1"),
        (lambda: cagrad({"a": 1.0}, c=float("nan")), "cagrad: c must be a finite number"),
        (lambda: nash_mtl({"a": True}), "nash_mtl: the weight of 'a'"),
        (lambda: pcgrad({"a": 1.0}, seed=-1), "pcgrad: seed must be an integer >= 0"),
        (lambda: orthogonal_retain(-1.0), "orthogonal_retain: alpha"),
        (lambda: mgda({str(i): 1.0 for i in range(10)}), "mgda: at most 9 terms, got 10"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
