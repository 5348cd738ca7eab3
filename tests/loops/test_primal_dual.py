"""The dual variable: its recursion in float64, and the plain loop at a fixed value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objectives.cases import PARAMS, batches
from objectives.toy_lm import score

from jaxforget.combiners import weighted_sum
from jaxforget.engine.errors import UserError
from jaxforget.engine.state import init_state
from jaxforget.loops import PrimalDualSettings, plain, primal_dual
from jaxforget.objectives import spread_objective

SPEC, COMBINER = spread_objective(), weighted_sum({"forget": 0.5, "retain": 1.0})
ROLES = {role: batch for role, batch in batches().items() if role in SPEC.needs.roles}


def run(settings, steps, accumulate=1):
    optimizer, loop = optax.sgd(0.02), primal_dual(settings)
    step = jax.jit(loop.make(score, SPEC.objective, COMBINER, optimizer, accumulate=accumulate))
    state = init_state(PARAMS, optimizer, COMBINER, loop_state=loop.init(PARAMS, optimizer))
    rows = []
    for _ in range(steps):
        state, metrics = step(state, {}, ROLES, {})
        rows.append(jax.device_get(metrics))
    return state, rows


def test_lambda_rises_by_the_excess_after_the_warm_up_and_never_below_zero():
    settings = PrimalDualSettings(bound=1.9, start=0.3, rate=2.0, warmup=2)
    state, rows = run(settings, 12)
    dual = 0.3
    for number, row in enumerate(rows):
        np.testing.assert_allclose(row["dual"], dual, rtol=1e-5, atol=1e-6)
        if number >= 2:
            dual = max(0.0, dual + 2.0 * (float(row["retain"]) - 1.9))
    np.testing.assert_allclose(state.loop_state, dual, rtol=1e-5, atol=1e-6)
    assert len({round(float(row["dual"]), 4) for row in rows}) > 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fixed_lambda_is_a_weighted_sum(accumulate):
    state, _ = run(PrimalDualSettings(start=0.7, rate=0.0), 3, accumulate)
    fixed, optimizer = weighted_sum({"forget": 0.5, "retain": 0.7}), optax.sgd(0.02)
    step = jax.jit(plain(score, SPEC.objective, fixed, optimizer, accumulate=accumulate))
    other = init_state(PARAMS, optimizer, fixed)
    for _ in range(3):
        other, _ = step(other, {}, ROLES, {})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.params, other.params
    )


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="rate must be at least 0"):
        PrimalDualSettings(rate=-1.0)
    with pytest.raises(UserError, match="forget and retain"):
        only = weighted_sum({"forget": 1.0})
        primal_dual().make(score, SPEC.objective, only, optax.sgd(1.0))
    assert jnp.asarray(primal_dual().init(PARAMS, None)).dtype == jnp.float32
