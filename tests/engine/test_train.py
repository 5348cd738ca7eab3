"""The host loop: what it logs, warns of and refuses."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxforget.engine.errors import UserError
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.engine.train import Cadence, Inputs, compile_step, train


def run(metrics, steps=6, **cadence):
    """Train for `steps` with a step that only counts; returns what was logged."""
    seen = []
    train(
        lambda state, *_: (state + 1, metrics(int(state) + 1)),
        np.int32(0),
        {},
        iter([Inputs({}, {}, 5)] * steps),
        Cadence(steps, **cadence),
        listen=lambda progress: seen.append((progress.step, progress.metrics)),
    )
    return seen


def test_logged_steps_are_the_first_the_last_and_every_nth():
    seen = run(lambda step: {"loss": np.float32(step)}, steps=7, log_every=3)
    assert [step for step, _ in seen] == [1, 3, 6, 7]
    assert [metrics["loss"] for _, metrics in seen] == [1, 3, 6, 7]


def test_an_alert_is_warned_of_once(caplog):
    with caplog.at_level(logging.WARNING):
        run(lambda step: {"alert_forgetting_reverses": np.float32(step > 2)}, log_every=1)
    assert [each.message for each in caplog.records] == ["step 3: forgetting reverses"]


def test_no_alert_no_warning(caplog):
    with caplog.at_level(logging.WARNING):
        run(lambda step: {"alert_forgetting_reverses": np.float32(0)}, log_every=1)
    assert not caplog.records


def test_too_many_refused_steps_stop_the_run():
    with pytest.raises(UserError, match="stopped at step 4: the last 4 steps"):
        run(lambda step: {"skipped_in_a_row": np.int32(step)}, log_every=1, max_skipped=4)


def test_a_compiled_step_tells_the_memory_it_needs():
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step = compile_step(lambda state, x: (state + x @ x.sum(0), {"x": x[0, 0]}), mesh, None)
    assert step.peak_bytes is None
    step(jnp.zeros(64), jnp.ones((64, 64)))
    assert step.peak_bytes >= 4 * (64 * 64 + 64)
