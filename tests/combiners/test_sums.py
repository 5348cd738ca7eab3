"""weighted_sum: the right sum, one backward pass, and words for what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxforget.combiners import weighted_sum
from jaxforget.engine.errors import UserError
from jaxforget.engine.step import SUM, term_gradients


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "a": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
            "b": {"w": jnp.asarray(rng.normal(size=4), jnp.bfloat16)},
        }
        for name in ("forget", "retain")
    }


def test_direction_is_the_weighted_sum_in_the_dtypes_of_the_gradients():
    some = gradients()
    combiner = weighted_sum({"retain": 0.5, "forget": -2.0})
    direction, state, metrics = combiner.combine(some, combiner.init(some["forget"]), {})
    assert state == () and metrics == {} and combiner.finish is None
    jax.tree.map(
        lambda d, f, r: np.testing.assert_allclose(
            np.asarray(d, np.float64),
            -2 * np.asarray(f, np.float64) + 0.5 * np.asarray(r, np.float64),
            rtol=1e-6 if d.dtype == jnp.float32 else 2e-2,
            atol=1e-6 if d.dtype == jnp.float32 else 2e-2,
        ),
        direction,
        some["forget"],
        some["retain"],
    )
    assert jax.tree.map(lambda x: x.dtype, direction) == jax.tree.map(
        lambda x: x.dtype, some["forget"]
    )


def test_one_term_of_weight_one_passes_bit_for_bit():
    gradient = {"w": jnp.array([0.0, -0.0, 1e-45, 3.4e38, jnp.inf], jnp.float32)}
    direction, _, _ = jax.jit(weighted_sum({"forget": 1.0}).combine)({"forget": gradient}, (), {})
    ours, theirs = (np.asarray(g["w"]).view(np.uint32) for g in (direction, gradient))
    np.testing.assert_array_equal(ours, theirs)


def test_combine_equals_the_engines_single_backward_pass():
    params = {"w": jnp.array([0.3, -1.2])}

    def objective(score, p, batches, reference):
        return {"forget": (p["w"] ** 2).sum(), "retain": jnp.sin(p["w"]).sum()}, {}

    combiner = weighted_sum({"forget": -1.5, "retain": 2.0})
    single, _, _ = term_gradients(objective, combiner, lambda *_: None, params, {}, {})
    apart = {
        name: jax.grad(lambda p, n=name: objective(None, p, {}, {})[0][n])(params)
        for name in ("forget", "retain")
    }
    direction, _, _ = combiner.combine(apart, (), params)
    np.testing.assert_allclose(direction["w"], single[SUM]["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"forget": 1.0}, "terms without a weight: \\['retain'\\]"),
        ({"forget": 1.0, "retain": 1.0, "retian": 1.0}, "weights without a term: \\['retian'\\]"),
    ],
)
def test_terms_and_weights_must_name_the_same(weights, message):
    with pytest.raises(UserError, match=message):
        jax.jit(weighted_sum(weights).combine).trace(gradients(), (), {})


@pytest.mark.parametrize("weights", [{}, {"forget": float("nan")}, {"forget": "1"}])
def test_weights_must_be_finite_numbers(weights):
    with pytest.raises(UserError, match="weight"):
        weighted_sum(weights)
