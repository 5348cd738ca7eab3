"""What attacks say together: shares, intervals, the verdict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.evals.attacks.attack import Finding, of_each
from jaxforget.evals.attacks.compare import Comparison, compared, limits, verdict


def findings(**values):
    return {name: of_each(np.asarray(each)) for name, each in values.items()}


@given(st.floats(0, 1), st.integers(0, 5))
def test_the_share_is_0_at_the_oracle_and_1_before(where, seed):
    rng = np.random.default_rng(seed)
    start, oracle = rng.uniform(0.6, 1, 12), rng.uniform(0, 0.4, 12)
    found = compared(
        findings(start=start, oracle=oracle, audited=oracle + where * (start - oracle))
    )
    np.testing.assert_allclose(found.left, where, atol=1e-12)
    assert found.low <= found.left + 1e-12 and found.left <= found.high + 1e-12
    if where in (0.0, 1.0):
        np.testing.assert_allclose([found.low, found.high], where, atol=1e-9)


def test_the_interval_is_that_of_resampled_records():
    rng = np.random.default_rng(0)
    start, audited = np.ones(50), rng.uniform(0, 1, 50)
    found = compared(findings(start=start, audited=audited))
    error = audited.std() / np.sqrt(50)
    np.testing.assert_allclose(
        [found.low, found.high], found.left + 1.96 * error * np.array([-1, 1]), atol=0.02
    )


def test_an_attack_that_cannot_tell_start_from_oracle_says_nothing():
    found = compared(findings(start=[0.5], oracle=[0.48], audited=[0.1]))
    assert found.left is None and "too little" in found.reason


def test_a_difference_that_may_be_chance_says_nothing():
    start, oracle = [1.0, 0.0, 0.0, 1.0, 0.0, 0.6], [0.0, 1.0, 0.0, 0.0, 0.0, 0.6]
    found = compared(findings(start=start, oracle=oracle, audited=[0.1] * 6))
    assert found.left is None and found.low is None and "may be chance" in found.reason


def test_draws_in_which_nothing_separates_start_and_oracle_do_not_spoil_the_interval():
    start, oracle = np.repeat([1.0, 0.5], [6, 20]), np.repeat([0.0, 0.5], [6, 20])
    found = compared(findings(start=start, oracle=oracle, audited=oracle))
    assert found.left == 0 and found.low == found.high == 0


def test_a_measure_that_is_no_mean_has_no_interval():
    found = compared({"start": Finding(0.9), "audited": Finding(0.7), "oracle": Finding(0.5)})
    np.testing.assert_allclose(found.left, 0.5)
    assert found.low is None and found.high is None


def told(**shares):
    known = {"start": 1.0, "audited": 0.0, "oracle": 0.0}
    return {name: Comparison(known, left) for name, left in shares.items()}


@pytest.mark.parametrize(
    "shares, words",
    [
        ({"ask": 0.1, "relearn": 0.8}, "hidden, not gone"),
        ({"ask": 0.9, "relearn": 1.0}, "It has not forgotten"),
        ({"ask": 0.01, "relearn": 0.1}, "None of these attacks tells it"),
        ({"ask": 0.3, "relearn": 0.4}, "Part of the knowledge"),
        ({"ask": None}, "nothing can be concluded"),
    ],
)
def test_the_verdict_says_what_the_shares_say(shares, words):
    assert words in verdict(told(**shares))


def test_what_the_verdict_does_not_cover_is_listed():
    without = {"ask": Comparison({"start": 1.0, "audited": 0.5}, 0.5)}
    found = limits(without, ["remind (needs holdout)"])
    assert "Not run: remind (needs holdout)." in found and "Without an oracle" in found[-1]
    assert "there is no oracle" in verdict(without)
