"""The functions on plain arrays: values, gradients, limits and edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.engine.errors import UserError
from jaxforget.objectives import gradient_ascent, kl_divergence, nll, npo


def draw(seed, count=8):
    rng = np.random.default_rng(seed)
    logp, ref = -rng.exponential(20.0, size=(2, count)).astype(np.float32)
    return logp, ref, rng.random(count) < 0.7


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), beta=st.sampled_from([1e-3, 0.1, 1.0, 50.0]))
def test_npo_and_its_gradient_equal_float64(seed, beta):
    logp, ref, mask = draw(seed)
    value, gradient = jax.value_and_grad(lambda x: npo(x, ref, beta=beta, mask=mask))(logp)
    gap = beta * (logp.astype(np.float64) - ref)
    count = max(mask.sum(), 1)
    expected = (mask * 2 / beta * np.logaddexp(0, gap)).sum() / count
    slope = mask * 2 * np.exp(-np.logaddexp(0, -gap)) / count
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=2e-4, atol=1e-7)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_token_means_equal_float64(seed):
    logp, _, mask = draw(seed)
    expected = -(logp.astype(np.float64) * mask).sum() / max(mask.sum(), 1)
    np.testing.assert_allclose(nll(logp, mask), expected, rtol=1e-6)
    np.testing.assert_allclose(gradient_ascent(logp, mask), -expected, rtol=1e-6)
    np.testing.assert_allclose(nll(logp), -logp.astype(np.float64).mean(), rtol=1e-6)
    gradient = jax.grad(gradient_ascent)(logp, mask)
    np.testing.assert_allclose(gradient, mask / max(mask.sum(), 1), rtol=1e-6)


def test_kl_divergence_equals_float64_and_its_gradient_is_q_minus_p():
    rng = np.random.default_rng(0)
    p_logits, q_logits = rng.normal(size=(2, 3, 4, 9)).astype(np.float32)
    mask = np.array([[1, 1, 0, 1]] * 3, bool)
    value, gradient = jax.value_and_grad(lambda q: kl_divergence(p_logits, q, mask=mask))(q_logits)
    p, q = (np.exp(z.astype(np.float64)) for z in (p_logits, q_logits))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    expected = ((p * np.log(p / q)).sum(-1) * mask).sum() / 9
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, (q - p) * mask[..., None] / 9, atol=1e-6)


def test_npo_gradient_tends_to_gradient_ascent_as_beta_vanishes():
    logp, ref, _ = draw(3)
    gradient = jax.grad(lambda x: npo(x, ref, beta=1e-7))(logp)
    np.testing.assert_allclose(gradient, jax.grad(gradient_ascent)(logp), rtol=1e-4)


def test_npo_where_both_models_agree():
    logp, _, _ = draw(4)
    value, gradient = jax.value_and_grad(lambda x: npo(x, logp, beta=0.3))(logp)
    np.testing.assert_allclose(value, 2 / 0.3 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.full(8, 1 / 8), rtol=1e-6)


def test_npo_stops_pulling_on_what_is_forgotten_and_never_overflows():
    logp = jnp.array([-1e30, -1e4, 0.0, -5.0])
    ref = jnp.array([-1.0, -1.0, -1e30, -5.0])
    for beta in (1e-6, 0.1, 1e6):
        value, gradient = jax.value_and_grad(lambda x, b=beta: npo(x, ref, beta=b))(logp)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
        np.testing.assert_allclose(gradient[3], 1 / 4, rtol=1e-6)
        np.testing.assert_allclose(gradient[2], 2 / 4, rtol=1e-6)
        assert gradient[0] == 0
    assert gradient[1] == 0


def test_no_gradient_flows_into_the_reference():
    logp, ref, _ = draw(5)
    assert not np.any(jax.grad(lambda r: npo(logp, r, beta=0.5))(ref))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_masked_reaches_neither_value_nor_gradient(bad):
    logp, ref = jnp.array([-1.0, bad]), jnp.array([-2.0, bad])
    mask = jnp.array([True, False])
    for function in (
        lambda x: npo(x, ref, beta=0.5, mask=mask),
        lambda x: nll(x, mask),
        lambda x: kl_divergence(
            jnp.stack([ref, ref], 1), jnp.stack([x, jnp.zeros(2)], 1), mask=mask
        ),
    ):
        value, gradient = jax.value_and_grad(function)(logp)
        assert np.isfinite(value) and np.isfinite(gradient[0]) and gradient[1] == 0


def test_nothing_counted_is_zero_with_zero_gradient():
    logp, ref, _ = draw(6)
    nobody = np.zeros(8, bool)
    for function in (lambda x: npo(x, ref, beta=0.5, mask=nobody), lambda x: nll(x, nobody)):
        value, gradient = jax.value_and_grad(function)(logp)
        assert value == 0 and not np.any(gradient)
    assert nll(jnp.zeros((0,))) == 0


@pytest.mark.parametrize("beta", [0, -0.1, float("nan")])
def test_beta_must_be_above_zero(beta):
    with pytest.raises(UserError, match="beta must be above 0"):
        npo(jnp.zeros(2), jnp.zeros(2), beta=beta)
