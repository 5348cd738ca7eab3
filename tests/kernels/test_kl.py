"""linear_kl against float64, at odd shapes, in blocks, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget_kernels import linear_kl
from jaxforget_kernels.kl import reference
from kernels import oracles


def side(seed, width, lead=(2,), length=7, vocab=11, dtype=np.float32):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(*lead, length, width)), dtype)
    weight = jnp.asarray(rng.normal(size=(vocab, width)), dtype)
    return hidden, weight, jnp.asarray(rng.normal(size=vocab), dtype)


def value_and_gradients(p, q, cotangent, softcaps=(None, None), block=None):
    def total(p, q):
        value = linear_kl(
            p[0],
            p[1],
            q[0],
            q[1],
            bias_p=p[2],
            bias_q=q[2],
            softcap_p=softcaps[0],
            softcap_q=softcaps[1],
            block=block,
        )
        return (cotangent * value).sum(), value

    step = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (_, value), gradients = step(p, q)
    return value, gradients


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lead=st.sampled_from([(), (3,), (2, 2)]),
    length=st.integers(1, 8),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    vocab=st.integers(1, 37),
    block=st.sampled_from([None, 1, 3, 100]),
    with_bias=st.booleans(),
    softcaps=st.sampled_from([(None, None), (2.0, None), (None, 5.0)]),
)
def test_value_and_both_gradients_equal_float64(
    seed, lead, length, widths, vocab, block, with_bias, softcaps
):
    p = side(seed, widths[0], lead, length, vocab)
    q = side(seed + 1, widths[1], lead, length, vocab)
    p, q = (s if with_bias else (*s[:2], None) for s in (p, q))
    cotangent = jnp.asarray(np.random.default_rng(seed).normal(size=(*lead, length)), jnp.float32)
    value, gradients = value_and_gradients(p, q, cotangent, softcaps, block)
    expected, to_p, to_q = oracles.kl((*p, softcaps[0]), (*q, softcaps[1]), cotangent)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip((*gradients[0], *gradients[1]), (*to_p, *to_q), strict=True):
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=5e-5)


def test_equal_distributions_have_exactly_no_divergence_and_no_gradient():
    p = side(0, 5)
    value, (to_p, to_q) = value_and_gradients(p, p, jnp.ones((2, 7)), block=3)
    np.testing.assert_array_equal(value, 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((to_p, to_q)))


def test_a_tiny_divergence_is_resolved_far_below_the_rounding_of_log_probabilities():
    p = side(1, 5, vocab=1000)
    q = (p[0] + 1e-3 * jnp.cos(jnp.arange(5.0))[None, None, :], *p[1:])
    value, _ = value_and_gradients(p, q, jnp.ones((2, 7)))
    expected, _, _ = oracles.kl((*p, None), (*q, None), np.ones((2, 7)))
    assert np.all(expected < 1e-5)
    assert np.all(value >= 0)
    np.testing.assert_allclose(value, expected, rtol=1e-2)


def test_huge_logits_and_forbidden_words_stay_finite():
    p, q = side(2, 5), side(3, 5)
    p = (p[0] * 1e4, p[1], p[2].at[3].set(-jnp.inf))
    q = (q[0] * 1e4, q[1], q[2].at[3].set(-jnp.inf))
    value, gradients = value_and_gradients(p, q, jnp.ones((2, 7)), block=2)
    expected, _, _ = oracles.kl(
        *((h, np.delete(w, 3, 0), np.delete(b, 3), None) for h, w, b in (p, q)), np.ones((2, 7))
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_a_word_that_only_p_allows_makes_the_divergence_infinite():
    p, q = side(4, 5), side(5, 5)
    q = (q[0], q[1], q[2].at[3].set(-jnp.inf))
    assert np.all(np.isposinf(linear_kl(p[0], p[1], q[0], q[1], bias_p=p[2], bias_q=q[2])))
    back = linear_kl(q[0], q[1], p[0], p[1], bias_p=q[2], bias_q=p[2])
    assert np.all(np.isfinite(back))


@pytest.mark.parametrize("block", [1, 2, 5])
def test_blocks_that_do_not_divide_the_length_change_nothing(block):
    p, q = side(6, 5), side(7, 4)
    p, q = (*p[:2], p[2] * 100), (*q[:2], q[2] * 100)
    cotangent = jnp.arange(14.0).reshape(2, 7)
    whole = value_and_gradients(p, q, cotangent, block=7)
    parts = value_and_gradients(p, q, cotangent, block=block)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), whole, parts)


def test_bfloat16_loses_no_more_than_the_rounding_of_the_cotangent():
    # bound as for linear_cross_entropy: 2^-8 for the rounded cotangent, 2^-8 for the result
    p, q = (side(seed, 16, vocab=50, dtype=jnp.bfloat16) for seed in (8, 9))
    value, (_, to_q) = value_and_gradients(p, q, jnp.ones((2, 7)), block=3)
    expected, _, slopes = oracles.kl((*p, None), (*q, None), np.ones((2, 7)))
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
    logp, logq = (oracles.log_softmax(oracles.logits(*s)) for s in (p, q))
    dz = np.abs(np.exp(logq) - np.exp(logp))
    scale = oracles.gradients(dz, None, *(np.abs(a) for a in oracles.f64(q[0], q[1])))
    for ours, theirs, size in zip(to_q, slopes, scale, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.all(np.abs(np.asarray(ours, np.float64) - theirs) <= 2.0**-7 * size + 1e-5)


def test_no_positions_give_no_values_and_zero_gradients():
    p = side(10, 5, length=0)
    value, gradients = value_and_gradients(p, p, jnp.ones((2, 0)))
    assert value.shape == (2, 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_the_reference_form_agrees():
    p, q = side(11, 5), side(12, 4)
    ours = linear_kl(p[0], p[1], q[0], q[1], bias_p=p[2], softcap_q=3.0)
    plain = reference.linear_kl(p[0], p[1], q[0], q[1], bias_p=p[2], softcap_q=3.0)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_hessian_vector_products_equal_autodiff_of_the_plain_form():
    p, q = side(13, 5), side(14, 5)
    direction = jnp.ones_like(q[1]) + q[1] ** 2

    def product(function, **options):
        def total(weight):
            return function(p[0], p[1], q[0], weight, **options).sum()

        return jax.jvp(jax.grad(total), (q[1],), (direction,))[1]

    ours = product(linear_kl, block=3)
    np.testing.assert_allclose(ours, product(reference.linear_kl), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_q": jnp.ones((2, 6, 4))}, "hidden_q"),
        ({"weight_q": jnp.ones((10, 4))}, "weight_q has 10 words"),
        ({"weight_p": jnp.ones((11, 4))}, "weight_p must be"),
        ({"bias_q": jnp.ones(3)}, "bias_q must be"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    p, q = side(15, 5), side(16, 4)
    given = {"hidden_p": p[0], "weight_p": p[1], "hidden_q": q[0], "weight_q": q[1], **change}
    with pytest.raises(ValueError, match=message):
        linear_kl(**given)
