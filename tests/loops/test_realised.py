"""What a step did to its batch's terms, logged beside any loop."""

import jax
import numpy as np
import pytest
from engine import toy
from methods.small_runs import run

from jaxforget.combiners import weighted_sum
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.state import init_state
from jaxforget.loops import PLAIN, periodic, with_realised_changes

pytest_plugins = ["methods.conftest"]
BATCHES = {"forget": toy.batch(1), "retain": toy.batch(2)}


def terms(params):
    """Forget and retain terms of the toy, float64."""
    found = {}
    for role, sign in (("forget", -1.0), ("retain", 1.0)):
        batch = BATCHES[role]
        embed, mix, head = (
            np.asarray(params[k]["w"], np.float64) for k in ("embed", "mix", "head")
        )
        logits = np.tanh(embed[batch.tokens] @ mix) @ head.T
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = np.take_along_axis(logp, batch.targets[..., None], -1)[..., 0]
        found[role] = -sign * (picked * batch.mask).sum() / batch.mask.sum()
    return found


@pytest.mark.parametrize("loop", [PLAIN, periodic(1)], ids=["plain", "periodic"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_realised_changes_are_the_terms_after_less_before(loop, accumulate):
    combiner = weighted_sum({"forget": 1.0, "retain": 1.0})
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, schedule="constant"), 10)
    steps = [
        jax.jit(each.make(toy.score, toy.objective, combiner, optimizer, accumulate=accumulate))
        for each in (loop, with_realised_changes(loop))
    ]
    state = init_state(toy.params(), optimizer, combiner)
    for _ in range(2):  # with periodic(1) the second step forgets
        bare, _ = steps[0](state, {}, BATCHES, {})
        before = terms(state.params)
        state, metrics = steps[1](state, {}, BATCHES, {})
        jax.tree.map(np.testing.assert_array_equal, bare.params, state.params)
        after = terms(state.params)
        for role in after:
            expected = after[role] - before[role]
            assert abs(expected) > 1e-4
            np.testing.assert_allclose(metrics[f"realised_change_{role}"], expected, atol=2e-6)


def test_the_projection_is_in_force_in_a_whole_run(world, tmp_path):
    method = {"name": "graddiff", "retain_weight": 0.0, "combiner": "geometric_disentangle"}
    _, rows = run(
        world,
        tmp_path / "run",
        method,
        train={"steps": 6, "batch_size": 8, "log_every": 1, "realised_changes": True},
        optimizer={"learning_rate": 3e-4, "weight_decay": 0.1, "warmup_fraction": 0.0},
    )
    bound = [row for row in rows if row["binding"]]
    assert len(bound) >= 3
    for row in bound:
        assert abs(row["predicted_change_retain"]) <= 1e-5 * row["raw_change_retain"]
        assert abs(row["realised_change_retain"]) < 0.2 * row["raw_change_retain"]
        assert row["realised_change_forget"] < 0
