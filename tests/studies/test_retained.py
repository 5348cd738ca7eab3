"""What is left of tasks, from looks that follow a law."""

import json

import numpy as np
import pytest

from jaxforget.report.continual import retention
from jaxforget.studies.streams.retained import retained

STEPS = np.arange(0, 401, 4)
ENDS = [100, 200, 402]


def looks(law):
    """Three tasks; each is learned linearly to 2 nats better within its steps, then fades."""
    curves = np.full((len(STEPS), 3), 6.0)
    for task, (begin, end) in enumerate(zip([0, 100, 200], ENDS, strict=True)):
        gain = 2 * np.clip((STEPS - begin) / (end - begin), 0, 1)
        since = np.maximum(STEPS - end, 0)
        curves[:, task] -= np.where(STEPS >= end, 2 * law(since), gain)
    return [{"step": int(s), "nll": row.tolist()} for s, row in zip(STEPS, curves, strict=True)]


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("power", lambda t: (1 + t) ** -0.3),
        ("exponential", lambda t: np.exp(-0.02 * t)),
        ("logarithmic", lambda t: 1 - 0.25 * np.log10(1 + t)),
    ],
)
def test_the_law_of_every_task_is_found_again(name, law):
    noise = np.random.default_rng(0).normal(0, 0.005, 200)
    found = retained(looks(lambda t: law(t) + np.resize(noise, t.shape) * (t > 0)), ENDS, "abc")
    assert [row["task"] for row in found] == ["a", "b"]
    for row, end in zip(found, ENDS, strict=False):
        assert row["gain"] == pytest.approx(2)
        assert row["times"] == (STEPS[STEPS >= end] - end).tolist()
        assert row["left"][0] == 1 and row["law"] == name
        fits = np.asarray(row["fit"])
        np.testing.assert_allclose(fits, law(np.asarray(row["times"])), atol=0.02)
        low, high = np.asarray(row["low"]), np.asarray(row["high"])
        assert np.all(low < fits) and np.all(fits < high)
        assert min(row["laws"].values(), key=lambda f: f["aic"]) == row["laws"][name]
    json.dumps(found, allow_nan=False)
    page = retention("run", {"retention": found})
    assert page.count("<svg") == 1 and "half life" in page


def test_what_was_not_gained_cannot_be_lost():
    rows = looks(lambda t: 1.0 + 0.0 * t)
    kept = retained(rows, ENDS, "abc")
    assert "law" not in kept[0] and set(kept[0]["left"]) == {1.0}  # nothing fades
    for row in rows:
        row["nll"][0] = 6.0
    lost = retained(rows, ENDS, "abc")
    assert lost[0] == {"task": "a", "gain": 0.0}
    assert retention("run", {"retention": lost[:1]}) == ""
    assert retained(rows[:52], [100, 204], "ab")[0]["gain"] == 0
    # a look every 80 steps: too few for a fit
    few = retained(looks(lambda t: np.exp(-t / 50))[::20], ENDS, "abc")
    assert "left" in few[1] and "law" not in few[1]
