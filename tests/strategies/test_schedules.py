"""Learning rates over a stream, step by step."""

import jax
import numpy as np
import pytest

from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.strategies import infinite, rewarmed


def values(schedule, count):
    return np.asarray(jax.vmap(schedule)(np.arange(count)), np.float64)


def test_every_task_warms_up_again_and_decays_to_its_own_last_step():
    lengths, peak = (100, 40, 7), 3e-4
    found = values(rewarmed(peak, lengths, warmup=0.1, final=0.1), 160)
    start = 0
    for count in lengths:
        rise = round(0.1 * count)
        mine = found[start : start + count]
        for step in range(count):
            if step < rise:
                expected = peak * (step + 1) / rise
            else:
                share = (step - rise) / (count - 1 - rise)
                expected = peak * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * share)))
            assert mine[step] == pytest.approx(expected, rel=1e-4), (count, step)
        assert mine.max() == pytest.approx(peak) and mine[-1] == pytest.approx(0.1 * peak, rel=1e-4)
        start += count
    np.testing.assert_allclose(found[start:], 0.1 * peak, rtol=1e-4)


def test_the_infinite_rate_has_no_end_until_it_is_annealed():
    peak, constant, final = 1e-3, 2e-4, 1e-5
    free = values(infinite(peak, constant, warmup=10, cooldown=30), 300)
    np.testing.assert_allclose(free[:10], peak * np.arange(1, 11) / 10, rtol=1e-5)
    t = np.arange(10, 40)
    cooled = constant + (peak - constant) / 2 * (1 + np.cos(np.pi * (t - 10) / 30))
    np.testing.assert_allclose(free[10:40], cooled, rtol=1e-5)
    np.testing.assert_allclose(free[40:], constant, rtol=1e-5)
    schedule = infinite(peak, constant, warmup=10, cooldown=30, anneal=(100, 50), final=final)
    released = values(schedule, 300)
    np.testing.assert_array_equal(released[:100], free[:100])
    t = np.arange(100, 151)
    np.testing.assert_allclose(
        released[100:151], constant * (final / constant) ** ((t - 100) / 50), rtol=1e-4
    )
    np.testing.assert_allclose(released[150:], final, rtol=1e-4)


def test_an_optimizer_takes_a_schedule_over_a_stream():
    schedule = rewarmed(0.1, (4, 3), warmup=0.25)
    optimizer = make_optimizer(OptimizerConfig("sgd", clip_norm=None), 7, schedule=schedule)
    state = optimizer.init({"w": np.zeros(1, np.float32)})
    for step in range(7):
        update, state = optimizer.update({"w": np.ones(1, np.float32)}, state)
        assert float(update["w"][0]) == pytest.approx(-float(schedule(step)))


def test_without_cooldown_the_constant_follows_the_warm_up():
    found = values(infinite(1e-3, 5e-4, warmup=3, cooldown=0), 6)
    np.testing.assert_allclose(found, [1e-3 / 3, 2e-3 / 3, 1e-3, 5e-4, 5e-4, 5e-4], rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rewarmed(0.0, (10,)),
        lambda: rewarmed(1.0, ()),
        lambda: rewarmed(1.0, (10, 0)),
        lambda: rewarmed(1.0, (10,), warmup=1.0),
        lambda: infinite(1.0, 2.0, warmup=1, cooldown=1),
        lambda: infinite(1.0, 0.5, warmup=1, cooldown=1, anneal=(5, 5)),
        lambda: infinite(1.0, 0.5, warmup=3, cooldown=3, anneal=(5, 5), final=0.1),
        lambda: infinite(1.0, 0.5, warmup=1, cooldown=1, anneal=(5, 5), final=0.6),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UserError):
        make()
