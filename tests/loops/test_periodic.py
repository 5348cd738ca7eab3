"""Learning with a forgetting step now and then."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objectives import toy_lm as toy

from jaxforget.combiners import compose, path_mask, pcgrad, weighted_sum
from jaxforget.engine.errors import UserError
from jaxforget.engine.state import init_state
from jaxforget.loops import PLAIN, periodic, periodic_until
from jaxforget.objectives import graddiff, retain_objective

PARAMS = toy.params(0)
ROLES = {
    "forget": toy.pack(toy.examples(1, 7), 4, 3),
    "retain": toy.pack(toy.examples(2, 11), 4, 5),
}
SPEC = graddiff(together=False)
SUM = weighted_sum({"forget": 0.5, "retain": 1.0})


def run(loop, steps, *, spec=SPEC, combiner=SUM, optimizer=None, accumulate=1):
    optimizer = optimizer or optax.adam(0.05)
    step = jax.jit(loop.make(toy.score, spec.objective, combiner, optimizer, accumulate=accumulate))
    state = init_state(PARAMS, optimizer, combiner, loop_state=loop.init(PARAMS, optimizer))
    states, rows = [state], []
    for _ in range(steps):
        state, metrics = step(state, {}, ROLES, {})
        states.append(state)
        rows.append(jax.device_get(metrics))
    return states, rows


def test_a_run_shorter_than_the_period_is_plain_learning_bit_for_bit():
    spec, alone = retain_objective(), weighted_sum({"retain": 1.0})
    plain, _ = run(PLAIN, 4, spec=spec, combiner=alone)
    ours, rows = run(periodic(4), 4)
    for a, b in zip(
        jax.tree.leaves(plain[-1].params), jax.tree.leaves(ours[-1].params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert all(row["forgetting"] == 0 and row["forget"] == 0 for row in rows)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_period_ends_with_one_step_up_the_forget_loss(accumulate):
    states, rows = run(periodic(2), 7, optimizer=optax.sgd(0.05), accumulate=accumulate)
    assert [row["forgetting"] for row in rows] == [0, 0, 1, 0, 0, 1, 0]
    for before, after, row in zip(states, states[1:], rows, strict=False):
        name = "forget" if row["forgetting"] else "retain"
        weight = {"forget": 0.5, "retain": 1.0}[name]

        def loss(p, name=name):
            return SPEC.objective(toy.score, p, ROLES, {})[0][name]

        value, gradient = jax.value_and_grad(loss)(before.params)
        want = jax.tree.map(lambda p, g, w=weight: p - 0.05 * w * g, before.params, gradient)
        np.testing.assert_allclose(row[name], value, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.params, want
        )


def test_forgetting_may_end_with_a_part_of_the_run():
    _, rows = run(periodic_until(1, 0.6)(10), 10)
    assert [row["forgetting"] for row in rows] == [0, 1, 0, 1, 0, 1, 0, 0, 0, 0]
    whole, part = (run(loop, 4)[0][-1] for loop in (periodic(1), periodic_until(1, 1.0)(4)))
    jax.tree.map(np.testing.assert_array_equal, whole.params, part.params)
    _, rows = run(periodic_until(1, 0.0)(4), 4)
    assert not any(row["forgetting"] for row in rows)


def test_finishers_hold_in_both_kinds_of_step():
    masked = compose(SUM, path_mask("mix"))
    states, _ = run(periodic(1), 4, combiner=masked)
    for name in ("embed", "head"):
        np.testing.assert_array_equal(states[-1].params[name], PARAMS[name])
    assert jnp.abs(states[-1].params["mix"] - PARAMS["mix"]).max() > 1e-3


def test_impossible_choices_are_refused():
    with pytest.raises(UserError, match="every must be at least 1"):
        periodic(0)
    with pytest.raises(UserError, match="until must be in"):
        periodic_until(1, 1.5)
    with pytest.raises(UserError, match="weighted sum of the terms"):
        run(periodic(2), 1, combiner=pcgrad({"forget": 1.0, "retain": 1.0}))
