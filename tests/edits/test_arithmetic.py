"""Task vectors and interpolation: float64, inverses, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxforget.edits import interpolate, task_arithmetic, whp_logits
from jaxforget.engine.errors import UserError


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {"a": {"w": jnp.asarray(rng.normal(size=(3, 4)), dtype)}, "b": jnp.ones(2, dtype) * seed}


def test_a_task_vector_is_subtracted():
    base, tuned = tree(1), tree(2)
    got = task_arithmetic(base, tuned, scale=0.7)
    jax.tree.map(
        lambda g, b, t: np.testing.assert_allclose(
            g, np.float64(b) - 0.7 * (np.float64(t) - np.float64(b)), rtol=1e-5, atol=1e-6
        ),
        got,
        base,
        tuned,
    )
    jax.tree.map(np.testing.assert_array_equal, task_arithmetic(base, tuned, scale=0.0), base)
    jax.tree.map(np.testing.assert_array_equal, task_arithmetic(base, tuned, scale=-1.0), tuned)


def test_interpolation_meets_both_ends_bit_for_bit_and_keeps_the_dtype():
    one, other = tree(1, jnp.bfloat16), tree(2, jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, interpolate(one, other, share=0), one)
    jax.tree.map(np.testing.assert_array_equal, interpolate(one, other, share=1), other)
    middle = interpolate(one, other, share=0.5)
    assert middle["b"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(middle["b"]), 1.5)


def test_whp_lowers_only_what_the_reinforced_model_raised():
    base, reinforced = jnp.float32([[1.0, 2.0, 3.0]]), jnp.float32([[2.0, 1.0, 3.0]])
    np.testing.assert_allclose(whp_logits(base, reinforced, alpha=5.0), [[-4.0, 2.0, 3.0]])
    np.testing.assert_array_equal(whp_logits(base, reinforced, alpha=0.0), base)
    with pytest.raises(UserError, match="alpha must be at least 0"):
        whp_logits(base, reinforced, alpha=-1.0)


def test_models_of_other_shapes_are_refused():
    with pytest.raises(UserError, match="only one has 'b'"):
        interpolate(tree(1), {"a": tree(1)["a"]}, share=0.5)
    with pytest.raises(UserError, match="differ at 'b'"):
        interpolate(tree(1), {**tree(1), "b": jnp.ones(3)}, share=0.5)
