"""The host loop: what it logs, warns of and refuses."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxforget.engine import train as loop
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


@pytest.mark.parametrize("apart", [0.0, 0.5])
@pytest.mark.parametrize("every", [1, 3, 10])
def test_a_step_takes_the_time_between_the_ends_of_steps(monkeypatch, every, apart):
    """However late the host hears of them; without what is no part of the training."""
    monkeypatch.setattr(loop.time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(loop, "_when_ready", lambda metrics: 2.0 * float(metrics["loss"]))
    seen = []
    train(
        lambda state, *_: (state + 1, {"loss": np.float32(state + 1)}),
        np.int32(0),
        {},
        iter([Inputs({}, {}, 5)] * 8),
        Cadence(8, log_every=every),
        listen=lambda progress: seen.append(progress.metrics),
        after_step=lambda done, state: apart,
    )
    later = seen[1:]  # the first also holds what comes before it
    assert [row["step_ms"] for row in later] == [pytest.approx(2000 - 1000 * apart)] * len(later)
    rates = [row["tokens_per_second"] for row in later]
    assert rates == [pytest.approx(5 / (2 - apart))] * len(later)


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
