import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import OptimizerConfig, decayed, make_optimizer, make_schedule


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedules_rise_to_the_peak_and_end_where_they_should(kind):
    config = OptimizerConfig(
        learning_rate=2.0, schedule=kind, warmup_fraction=0.1, final_fraction=0.25
    )
    schedule = make_schedule(config, 100)
    assert float(schedule(0)) == pytest.approx(0.2)  # the first step already moves
    assert float(schedule(9)) == float(schedule(10)) == pytest.approx(2.0)
    last = 2.0 if kind == "constant" else 0.5
    assert float(schedule(100)) == pytest.approx(last)


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_runs_have_finite_positive_rates(steps, warmup):
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_fraction=warmup), steps)
    rates = [float(schedule(step)) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_weight_decay_touches_matrices_only():
    tree = {
        "embed": {"w": 0, "pos": 0},
        "layers": {"attn": {"q": {"w": 0, "b": 0}, "q_norm": {"scale": 0}}},
        "final_norm": {"scale": 0, "bias": 0},
    }
    assert decayed(tree) == {
        "embed": {"w": True, "pos": False},
        "layers": {"attn": {"q": {"w": True, "b": False}, "q_norm": {"scale": False}}},
        "final_norm": {"scale": False, "bias": False},
    }


def test_adamw_step_equals_the_formula():
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=0.5)
    params, gradient = {"w": jnp.array([2.0])}, {"w": jnp.array([0.3])}
    optimizer = make_optimizer(config, 10)
    update, _ = optimizer.update(gradient, optimizer.init(params), params)
    expect = -0.1 * (0.3 / (np.sqrt(0.3**2) + 1e-8) + 0.5 * 2.0)
    np.testing.assert_allclose(update["w"], [expect], rtol=1e-5)


def test_clipping_bounds_the_global_norm():
    config = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="constant", clip_norm=0.5)
    optimizer = make_optimizer(config, 10)
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    update, _ = optimizer.update(params, optimizer.init(params), params)
    assert float(optax.tree.norm(update)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "config",
    [OptimizerConfig(name="sgd", weight_decay=0.1), OptimizerConfig(name="lion", momentum=0.9)],
)
def test_options_that_would_do_nothing_are_refused(config):
    with pytest.raises(UserError, match="optimizer"):
        make_optimizer(config, 10)
