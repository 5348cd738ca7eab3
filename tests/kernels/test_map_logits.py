"""Functions of whole distributions: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget_kernels import linear_kl, map_logits
from jaxforget_kernels.map_logits import reference

VOCAB = 37


def sides(rows, length, softcap, biased, dtype=jnp.float32):
    keys = iter(jax.random.split(jax.random.key(rows * 100 + length), 8))
    made = []
    for width in (5, 7):
        hidden = jax.random.normal(next(keys), (rows, length, width)).astype(dtype)
        weight = jax.random.normal(next(keys), (VOCAB, width))
        bias = jax.random.normal(next(keys), (VOCAB,)) if biased else None
        made.append((hidden, weight, bias, softcap))
    targets = jax.random.randint(next(keys), (rows, length), 0, VOCAB)
    return made, targets


def tempered(zp, zq, target):
    """A loss neither of the other kernels has: CE of a sharpened p, less the target's own."""
    p = jax.nn.softmax(2 * zp, axis=-1)
    logq = jax.nn.log_softmax(zq, axis=-1)
    own = jnp.take_along_axis(logq, target[:, None], axis=1)[:, 0]
    return -(p * logq).sum(-1) - own


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([None, 3.0]),
)
@pytest.mark.slow
def test_blocks_change_neither_value_nor_gradient(rows, length, block, biased, softcap):
    projections, targets = sides(rows, length, softcap, biased)

    def total(run, **more):
        def loss(arrays):
            given = [(*each, softcap) for each in arrays]
            return (jnp.cos(run(tempered, given, [targets], **more))).sum()

        arrays = [each[:3] for each in projections]
        return jax.value_and_grad(loss)(arrays)

    want, ours = total(reference.map_logits), total(map_logits, block=block)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_it_agrees_with_the_divergence_kernel():
    (p, q), _ = sides(2, 6, None, True)

    def divergence(zp, zq):
        logp = jax.nn.log_softmax(zp, axis=-1)
        return (jnp.exp(logp) * (logp - jax.nn.log_softmax(zq, axis=-1))).sum(-1)

    ours = map_logits(divergence, [p, q], block=4)
    theirs = linear_kl(p[0], p[1], q[0], q[1], bias_p=p[2], bias_q=q[2])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_forward_over_reverse_gives_the_hessian_product():
    projections, targets = sides(2, 5, None, False)
    (hidden, weight, _, _), other = projections

    def loss(run, hidden, **more):
        return run(tempered, [(hidden, weight, None, None), other], [targets], **more).sum()

    tangent = jnp.ones_like(hidden)
    ours, theirs = (
        jax.jvp(jax.grad(lambda h: loss(run, h, **more)), (hidden,), (tangent,))[1]  # noqa: B023
        for run, more in ((map_logits, {"block": 2}), (reference.map_logits, {}))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_array_of_all_positions_by_the_vocabulary_is_kept():
    projections, targets = sides(4, 12, None, False)

    def loss(hidden, weight):
        mine = (hidden, weight, None, None)
        return map_logits(tempered, [mine, projections[1]], [targets], block=3).sum()

    step = jax.jit(jax.grad(loss, (0, 1)))
    text = step.lower(*projections[0][:2]).compile().as_text()
    assert f"{4 * 3},{VOCAB}]" in text
    for shape in (f"[{4 * 12},{VOCAB}]", f"[4,12,{VOCAB}]", f"[4,4,3,{VOCAB}]", f"[4,12,{VOCAB}]"):
        assert shape not in text


def test_products_and_their_gradients_keep_the_dtype_of_the_hidden_states():
    (first, second), targets = sides(2, 4, None, True, jnp.bfloat16)

    def loss(hidden, weight):
        return map_logits(tempered, [(hidden, weight, *first[2:]), second], [targets]).sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(*first[:2]).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 4
    assert all("bf16" in line.split(":")[-1].split("->")[0] for line in products)
    assert not any("f32" in line.split(":")[-1].split("->")[0] for line in products)
    to_hidden, to_weight = jax.grad(loss, (0, 1))(*first[:2])
    assert to_hidden.dtype == jnp.bfloat16 and to_weight.dtype == jnp.float32


def test_shapes_that_do_not_fit_are_named():
    (p, q), targets = sides(2, 4, None, False)
    with pytest.raises(ValueError, match="at least one"):
        map_logits(tempered, [])
    with pytest.raises(ValueError, match=r"columns\[0\]"):
        map_logits(tempered, [p, q], [targets[:1]])
    with pytest.raises(ValueError, match=r"hidden\[1\]"):
        map_logits(tempered, [p, (q[0][:, :2], *q[1:])], [targets])
