"""Dampening against its definition, entry by entry, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.edits import ssd
from jaxforget.engine.errors import UserError


def trees(seed, zeros=True):
    rng = np.random.default_rng(seed)
    shapes = {"a": {"w": (3, 5)}, "b": (7,)}

    def draw(make):
        return jax.tree.map(
            lambda s: jnp.asarray(make(s), jnp.float32), shapes, is_leaf=lambda x: type(x) is tuple
        )

    def squares(shape):
        keep = rng.random(shape) > 0.2 if zeros else 1.0
        return rng.exponential(1.0, shape) ** 3 * keep

    return draw(lambda s: rng.normal(size=s)), draw(squares), draw(squares)


def by_hand(weight, forget, everything, alpha, lam):
    weight, forget, everything = (np.asarray(x, np.float64) for x in (weight, forget, everything))
    out = weight.copy()
    for index in np.ndindex(weight.shape):
        if forget[index] > 0 and forget[index] > alpha * everything[index]:
            out[index] *= min(lam * everything[index] / forget[index], 1.0)
    return out


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 10.0]), st.sampled_from([0.0, 0.5, 1.0, 4.0])
)
def test_every_entry_follows_the_definition(seed, alpha, lam):
    params, forget, everything = trees(seed)
    edited, metrics = ssd(params, forget, everything, alpha=alpha, lam=lam)
    want = jax.tree.map(lambda w, f, e: by_hand(w, f, e, alpha, lam), params, forget, everything)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), edited, want)
    pairs = zip(*(jax.tree.leaves(t) for t in (forget, everything)), strict=True)
    chosen = sum(int(((f > 0) & (f > alpha * e)).sum()) for f, e in pairs)
    np.testing.assert_allclose(metrics["selected"], chosen / 22, rtol=1e-6)
    assert metrics["mean_factor"] <= max(1.0, lam / alpha) + 1e-6


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_its_limits():
    params, forget, everything = trees(0, zeros=False)
    same(ssd(params, forget, everything, alpha=np.inf)[0], params)
    same(ssd(params, forget, everything, lam=np.inf)[0], params)
    gone, metrics = ssd(params, forget, everything, alpha=1.0, lam=0.0)
    pairs = zip(*(jax.tree.leaves(t) for t in (gone, forget, everything)), strict=True)
    for leaf, f, e in pairs:
        np.testing.assert_array_equal(leaf == 0, f > e)
    assert metrics["mean_factor"] == 0 and metrics["selected"] > 0
    nothing = jax.tree.map(jnp.zeros_like, forget)
    same(ssd(params, nothing, nothing)[0], params)
    same(ssd(params, forget, forget, alpha=1.0)[0], params)
    assert ssd(params, forget, forget, alpha=1.0)[1]["selected"] == 0


def test_what_is_selected_is_cut_below_lam_over_alpha():
    params, forget, everything = trees(3)
    edited, _ = ssd(params, forget, everything, alpha=10.0, lam=1.0)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(edited), strict=True):
        changed = np.asarray(before != after)
        assert (np.abs(after[changed]) <= 0.1 * np.abs(before[changed])).all()


def test_alpha_may_depend_on_the_path():
    params, forget, everything = trees(1, zeros=False)
    edited, _ = ssd(
        params, forget, everything, alpha=lambda path: np.inf if path == "a/w" else 0.01
    )
    np.testing.assert_array_equal(edited["a"]["w"], params["a"]["w"])
    assert (edited["b"] != params["b"]).any()


def test_what_makes_no_sense_is_refused():
    params, forget, everything = trees(0)
    with pytest.raises(UserError, match="lam must be at least 0"):
        ssd(params, forget, everything, lam=-1.0)
    with pytest.raises(UserError, match="alpha must be above 0, got 0"):
        ssd(params, forget, everything, alpha=0.0)
    with pytest.raises(UserError, match="importance_all and the parameters differ, first at 'b'"):
        ssd(params, forget, {"a": everything["a"]})
