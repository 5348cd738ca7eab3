"""linear_cross_entropy against float64, at odd shapes, in blocks, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget_kernels import linear_cross_entropy
from jaxforget_kernels.cross_entropy import reference
from kernels import oracles


def problem(seed, lead=(2,), length=7, width=5, vocab=11, dtype=np.float32):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(*lead, length, width)), dtype)
    weight = jnp.asarray(rng.normal(size=(vocab, width)), dtype)
    targets = rng.integers(0, vocab, size=(*lead, length), dtype=np.int32)
    cotangent = jnp.asarray(rng.normal(size=(*lead, length)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=vocab), dtype)
    return hidden, weight, targets, cotangent, bias


def value_and_gradients(hidden, weight, targets, cotangent, bias, **options):
    def total(hidden, weight, bias):
        logp, stats = linear_cross_entropy(
            hidden, weight, targets, bias=bias, stats=True, **options
        )
        return (cotangent * logp).sum(), (logp, stats)

    wrt = (0, 1) if bias is None else (0, 1, 2)
    step = jax.jit(jax.value_and_grad(total, wrt, has_aux=True))
    (_, answer), gradients = step(hidden, weight, bias)
    return answer, gradients


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lead=st.sampled_from([(), (1,), (3,), (2, 2)]),
    length=st.integers(1, 9),
    width=st.integers(1, 6),
    vocab=st.integers(1, 37),
    block=st.sampled_from([None, 1, 2, 4, 100]),
    with_bias=st.booleans(),
    softcap=st.sampled_from([None, 1.5, 30.0]),
)
def test_value_statistics_and_gradients_equal_float64(
    seed, lead, length, width, vocab, block, with_bias, softcap
):
    hidden, weight, targets, cotangent, bias = problem(seed, lead, length, width, vocab)
    bias = bias if with_bias else None
    (logp, stats), gradients = value_and_gradients(
        hidden, weight, targets, cotangent, bias, softcap=softcap, block=block
    )
    expected, about, slopes = oracles.cross_entropy(
        hidden, weight, targets, cotangent, bias, softcap
    )
    np.testing.assert_allclose(logp, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(stats[0], about[0])
    for ours, theirs in zip(stats[1:], about[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, slopes, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def test_gradients_equal_finite_differences_of_float64():
    hidden, weight, targets, cotangent, bias = problem(5, (1,), 3, 2, 4)
    _, gradients = value_and_gradients(
        hidden, weight, targets, cotangent, bias, softcap=2.0, block=2
    )
    arguments = oracles.f64(hidden, weight, bias)

    def total(arguments):
        hidden, weight, bias = arguments
        logp = oracles.cross_entropy(hidden, weight, targets, cotangent, bias, 2.0)[0]
        return (logp * np.asarray(cotangent, np.float64)).sum()

    for which, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in arguments]
                moved[which][index] += step
                sides.append(total(moved))
            slope = (sides[0] - sides[1]) / 2e-6
            np.testing.assert_allclose(gradient[index], slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [None, 3])
def test_bfloat16_loses_no_more_than_the_rounding_of_the_cotangent(block):
    # The operands are bfloat16 on both sides and sums are float32: the forward pass has float32
    # error. Backward, each cotangent of a logit is rounded once (2^-8 relative) and each result
    # once more, hence the bound |error| <= 2^-7 sum |terms|, component by component.
    hidden, weight, targets, cotangent, bias = problem(3, (2,), 8, 16, 50, dtype=jnp.bfloat16)
    (logp, _), gradients = value_and_gradients(
        hidden, weight, targets, cotangent, bias, block=block
    )
    expected, _, slopes = oracles.cross_entropy(hidden, weight, targets, cotangent, bias)
    np.testing.assert_allclose(logp, expected, rtol=1e-5, atol=1e-4)
    every = oracles.log_softmax(oracles.logits(hidden, weight, bias))
    dz = np.abs(np.asarray(cotangent)[..., None] * (np.eye(50)[targets] - np.exp(every)))
    wide_hidden, wide_weight = (np.abs(a) for a in oracles.f64(hidden, weight))
    scale = oracles.gradients(dz, None, wide_hidden, wide_weight)
    for ours, theirs, size in zip(gradients, slopes, scale, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.all(np.abs(np.asarray(ours, np.float64) - theirs) <= 2.0**-7 * size + 1e-6)


def test_the_weight_keeps_its_own_dtype_in_its_gradient():
    hidden, weight, targets, cotangent, bias = problem(4)
    _, gradients = value_and_gradients(
        hidden.astype(jnp.bfloat16), weight, targets, cotangent, bias, block=3
    )
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
    rounded = gradients[1].astype(jnp.bfloat16).astype(jnp.float32)
    assert (rounded != gradients[1]).mean() > 0.9  # precise, not only wide


@pytest.mark.parametrize("block", [1, 2, 3, 5, 6])
def test_blocks_that_do_not_divide_the_length_change_nothing(block):
    # a bias beyond the range of exp would turn carelessly filled positions into NaN
    hidden, weight, targets, cotangent, bias = problem(6)
    bias = bias * 200
    whole = value_and_gradients(hidden, weight, targets, cotangent, bias, block=7)
    parts = value_and_gradients(hidden, weight, targets, cotangent, bias, block=block)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), whole, parts)


def test_extra_positions_without_cotangent_add_no_gradient():
    hidden, weight, targets, cotangent, bias = problem(7)
    (logp, _), short = value_and_gradients(hidden, weight, targets, cotangent, bias, block=2)
    pad = ((0, 0), (0, 4))
    (longer, _), long = value_and_gradients(
        jnp.pad(hidden, (*pad, (0, 0))),
        weight,
        np.pad(targets, pad),
        jnp.pad(cotangent, pad),
        bias,
        block=2,
    )
    np.testing.assert_allclose(longer[:, :7], logp, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(long[0][:, 7:], 0)
    for ours, theirs in zip(long[1:], short[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_no_positions_give_no_values_and_zero_gradients():
    hidden, weight, targets, cotangent, bias = problem(8, length=0)
    (logp, _), gradients = value_and_gradients(hidden, weight, targets, cotangent, bias)
    assert logp.shape == (2, 0)
    assert all(not np.any(g) and np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize("block", [None, 2])
def test_a_negative_target_is_ignored(block):
    hidden, weight, targets, cotangent, bias = problem(9)
    targets[0, 2] = -100
    (logp, stats), gradients = value_and_gradients(
        hidden, weight, targets, cotangent, bias, block=block
    )
    assert logp[0, 2] == 0 and stats[0][0, 2] == 0 and stats[1][0, 2] < 0
    assert not np.any(gradients[0][0, 2])
    silent = cotangent.at[0, 2].set(0.0)
    targets[0, 2] = 1
    _, expected = value_and_gradients(hidden, weight, targets, silent, bias, block=block)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients, expected
    )


def test_a_target_beyond_the_vocabulary_is_loud_and_harmless_where_masked():
    hidden, weight, targets, cotangent, bias = problem(10)
    targets[1, 3] = 11
    silent = cotangent.at[1, 3].set(0.0)
    (logp, _), gradients = value_and_gradients(hidden, weight, targets, silent, bias)
    assert np.isnan(logp[1, 3]) and np.isnan(logp).sum() == 1
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_of_equal_logits_the_lowest_index_is_the_arg_max():
    hidden, weight = jnp.ones((1, 3, 2)), jnp.ones((4, 2)).at[0].set(0.0)
    _, (hit, mean, _) = linear_cross_entropy(hidden, weight, jnp.array([[0, 1, 2]]), stats=True)
    np.testing.assert_array_equal(hit, [[0, 1, 0]])
    assert np.all(mean < 0)


def test_statistics_carry_no_gradient():
    hidden, weight, targets, _, _ = problem(11)

    def total(hidden):
        _, stats = linear_cross_entropy(hidden, weight, targets, stats=True)
        return sum(column.sum() for column in stats)

    assert not np.any(jax.grad(total)(hidden))


def test_forbidden_words_and_huge_logits_stay_finite():
    hidden, weight, targets, cotangent, bias = problem(12)
    bias = bias.at[3].set(-jnp.inf)
    targets[targets == 3] = 4
    (logp, stats), gradients = value_and_gradients(
        hidden * 1e4, weight, targets, cotangent, bias, block=3
    )
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves((logp, stats, gradients)))
    assert not np.any(gradients[1][3])


def test_the_reference_form_agrees():
    hidden, weight, targets, _, bias = problem(13)
    targets[0, 0] = -1
    ours = linear_cross_entropy(hidden, weight, targets, bias=bias, softcap=3.0, stats=True)
    plain = reference.linear_cross_entropy(
        hidden, weight, targets, bias=bias, softcap=3.0, stats=True
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, plain)


@pytest.mark.parametrize("block", [None, 3])
def test_hessian_vector_products_equal_autodiff_of_the_plain_form(block):
    hidden, weight, targets, cotangent, _ = problem(14)
    direction = jnp.ones_like(weight) + weight**2

    def product(function, **options):
        def total(weight):
            return (cotangent * function(hidden, weight, targets, **options)).sum()

        return jax.jvp(jax.grad(total), (weight,), (direction,))[1]

    ours = product(linear_cross_entropy, block=block)
    plain = product(reference.linear_cross_entropy)
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": jnp.ones((11, 4))}, "weight must be"),
        ({"targets": jnp.ones((2, 6), jnp.int32)}, "targets"),
        ({"bias": jnp.ones(10)}, "bias must be"),
        ({"hidden": jnp.ones(5)}, "hidden must be"),
        ({"block": 0}, "block must be at least 1"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    hidden, weight, targets, _, bias = problem(15)
    given = {"hidden": hidden, "weight": weight, "targets": targets, "bias": bias, **change}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**given)
