"""The influence edit against dense float64 matrices and the published recursion by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives import toy_lm as toy

from jaxforget.edits import example_gradients, woodfisher
from jaxforget.engine.errors import UserError

SHAPES = {"a": {"w": (3, 4)}, "b": (5,), "c": ()}


def drawn(rng):
    return jax.tree.map(
        lambda s: jnp.float32(rng.normal(size=s)), SHAPES, is_leaf=lambda x: type(x) is tuple
    )


def flat(tree):
    return np.concatenate([np.ravel(np.float64(leaf)) for leaf in jax.tree.leaves(tree)])


def case(seed, count):
    rng = np.random.default_rng(seed)
    params, forget, retain = (drawn(rng) for _ in range(3))
    return params, forget, retain, [drawn(rng) for _ in range(count)]


def moved(edited, params):
    return flat(edited) - flat(params)


def start(forget, retain, counts):
    """(sum g_f) / n - (n_f / n) mean g_r."""
    n = sum(counts)
    return counts[0] * flat(forget) / n - counts[0] / n * flat(retain)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 4, 25]), st.sampled_from([2.0, 30.0, 1000.0]))
def test_exact_equals_the_dense_matrix_recursion_and_the_dense_solve(seed, count, damping):
    params, forget, retain, gradients = case(seed, count)
    got = woodfisher(
        params,
        forget,
        retain,
        iter(gradients),
        counts=(3, 9),
        damping=damping,
        scale=2.0,
        recursion="exact",
    )
    v = start(forget, retain, (3, 9))
    inverse, dense = np.eye(v.size), np.eye(v.size)
    for g in map(flat, gradients):
        inverse -= np.outer(inverse @ g, inverse @ g) / (damping + g @ inverse @ g)
        dense += np.outer(g, g) / damping
    np.testing.assert_allclose(moved(got, params), 2 * inverse @ v, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(inverse @ v, np.linalg.solve(dense, v), rtol=1e-8)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 25), st.sampled_from([50.0, 1000.0]))
def test_published_follows_the_recursion_over_two_vectors(seed, count, damping):
    params, forget, retain, gradients = case(seed, count)
    got = woodfisher(
        params, forget, retain, iter(gradients), counts=(3, 9), damping=damping, scale=-1.5
    )
    k, o = start(forget, retain, (3, 9)), flat(gradients[0])
    for g in map(flat, gradients[1:]):
        t = o @ g
        k = k - k @ g / (damping + t) * o
        o = o - t / (damping + t) * o
    np.testing.assert_allclose(moved(got, params), -1.5 * k, rtol=2e-3, atol=2e-5)


def test_published_is_exact_where_all_gradients_are_equal():
    params, forget, retain, (g,) = case(4, 1)
    args = {"counts": (1, 1), "damping": 5.0, "scale": 1.0}
    published = woodfisher(params, forget, retain, [g] * 8, **args)
    exact = woodfisher(params, forget, retain, [g] * 7, **args, recursion="exact")
    np.testing.assert_allclose(moved(published, params), moved(exact, params), atol=1e-6)
    whole = woodfisher(params, forget, retain, [g], **args)
    assert np.abs(moved(published, params) - moved(whole, params)).max() > 0.05


@pytest.mark.parametrize("recursion", ["published", "exact"])
def test_its_limits(recursion):
    params, forget, retain, gradients = case(1, 6)
    args = {"counts": (2, 6), "recursion": recursion}
    still = woodfisher(params, forget, retain, gradients, scale=0.0, **args)
    jax.tree.map(np.testing.assert_array_equal, still, params)
    balanced = woodfisher(params, forget, forget, gradients, scale=3.0, **args)
    jax.tree.map(np.testing.assert_array_equal, balanced, params)
    plain = woodfisher(params, forget, retain, gradients, scale=1.0, damping=1e12, **args)
    np.testing.assert_allclose(
        moved(plain, params), start(forget, retain, (2, 6)), rtol=1e-4, atol=1e-6
    )
    # rows without example have no gradient: they change nothing, in front too
    empty = jax.tree.map(jnp.zeros_like, params)
    padded = [empty, gradients[0], empty, *gradients[1:], empty]
    one, other = (
        woodfisher(params, forget, retain, some, scale=1.0, damping=20.0, **args)
        for some in (gradients, padded)
    )
    np.testing.assert_allclose(flat(one), flat(other), rtol=1e-5, atol=1e-6)


def test_it_raises_the_forget_loss_above_the_retain_loss():
    some, params = toy.examples(3, 6), toy.params(1)
    batches = [toy.pack(some[i : i + 3], 3, 1, 4) for i in (0, 3)]
    first, second = (list(example_gradients(toy.score, params, [batch])) for batch in batches)
    forget = jax.tree.map(lambda *g: sum(g) / 3, *first)
    retain = jax.tree.map(lambda *g: sum(g) / 3, *second)
    got = woodfisher(params, forget, retain, second, counts=(3, 3), scale=0.1, recursion="exact")
    before, after = (
        [
            np.mean([toy.nll64(toy.float64(p), [each]) for each in part])
            for part in (some[:3], some[3:])
        ]
        for p in (params, got)
    )
    assert after[0] - after[1] > before[0] - before[1] + 1e-3


def test_example_gradients_are_each_examples_own():
    some, params = toy.examples(1, 4), toy.params(0)
    batches = [toy.pack(some[:3], 3, 1, 4), toy.pack(some[3:], 3, 1, 4)]
    found = list(example_gradients(toy.score, params, batches))
    assert len(found) == 6
    for each, got in zip(some, found, strict=False):
        want = toy.differences(lambda p, each=each: toy.nll64(p, [each]), toy.float64(params))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), got, want)
    for leaf in jax.tree.leaves(found[4:]):
        np.testing.assert_array_equal(leaf, 0.0)
    with pytest.raises(UserError, match="one example a row"):
        next(example_gradients(toy.score, params, [toy.pack(some, 2, 2)]))


def test_the_dtype_stays_and_what_makes_no_sense_is_refused():
    params, forget, retain, gradients = case(0, 2)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    got = woodfisher(narrow, forget, retain, gradients, counts=(1, 1), scale=1.0)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(got))

    def run(some=gradients, counts=(1, 1), scale=1.0, **more):
        return woodfisher(params, forget, retain, some, counts=counts, scale=scale, **more)

    with pytest.raises(UserError, match="no gradient of a retained example"):
        run([])
    with pytest.raises(UserError, match="Did you mean 'exact'"):
        run(recursion="exakt")
    with pytest.raises(UserError, match="damping must be above 0"):
        run(damping=0.0)
    with pytest.raises(UserError, match="counts must be two positive"):
        run(counts=(0, 3))
    with pytest.raises(UserError, match="gradient 1 and the parameters differ, only one has"):
        run([gradients[0], {"b": params["b"]}])
    with pytest.raises(UserError, match="no gradient of a retained"):
        run([], recursion="exact")
