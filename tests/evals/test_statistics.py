"""Intervals against scipy's own, ratios against their definitions, and what has no answer."""

import numpy as np
import pytest
from scipy import stats

from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics

VALUES = np.random.default_rng(3).exponential(1.0, 40)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_of_a_mean_are_scipys(method):
    got = metrics.bootstrap(VALUES, method=method, confidence=0.9, resamples=500, seed=7)
    want = stats.bootstrap(
        (VALUES,),
        np.mean,
        n_resamples=500,
        confidence_level=0.9,
        method={"bca": "BCa"}.get(method, method),
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert (got.low, got.high) == pytest.approx((want.low, want.high), rel=1e-12)
    assert got.value == pytest.approx(VALUES.mean()) and got.method == method
    assert got.low < got.value < got.high


def test_percentiles_are_those_of_resamples_drawn_by_hand():
    got = metrics.bootstrap(VALUES, method="percentile", resamples=4000)
    rng = np.random.default_rng(0)
    means = rng.choice(VALUES, (4000, 40)).mean(1)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.03)


def test_a_nominal_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    found = [metrics.bootstrap(rng.normal(0, 1, 30), resamples=200) for _ in range(120)]
    covered = np.mean([each.low <= 0 <= each.high for each in found])
    assert 0.85 <= covered <= 0.995


def test_intervals_of_several_samples_and_of_pairs():
    rng = np.random.default_rng(2)
    members, others = rng.normal(1, 1, 25), rng.normal(0, 1, 30)
    got = metrics.bootstrap(members, others, statistic=metrics.roc_auc, resamples=300)
    assert 0.5 < got.low < got.value == metrics.roc_auc(members, others) < got.high <= 1
    better = VALUES + 0.1 + 0.001 * rng.random(40)

    def difference(a, b, axis=-1):
        return a.mean(axis) - b.mean(axis)

    pairs = metrics.bootstrap(better, VALUES, statistic=difference, paired=True, resamples=300)
    apart = metrics.bootstrap(better, VALUES, statistic=difference, resamples=300)
    assert 0.1 < pairs.low and pairs.high < 0.11 and apart.low < 0


def test_a_statistic_without_axis_is_called_sample_by_sample():
    got = metrics.bootstrap(VALUES, statistic=lambda x: float(np.median(x)), resamples=100)
    assert got.low < got.value == np.median(VALUES) < got.high


def test_where_nothing_varies_the_interval_is_a_point_and_says_how_it_was_made():
    got = metrics.bootstrap(np.full(5, 0.25))
    assert (got.value, got.low, got.high, got.method) == (0.25, 0.25, 0.25, "percentile")
    apart = metrics.bootstrap(np.ones(4), np.zeros(4), statistic=metrics.roc_auc)
    assert (apart.low, apart.high) == (1, 1)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ((), {}, "at least two examples"),
        ((np.ones(1),), {}, "at least two examples"),
        ((np.array([1.0, np.nan]),), {}, "value 1 is nan"),
        ((VALUES,), {"confidence": 1.0}, "between 0 and 1, is 1.0"),
        ((VALUES,), {"method": "basic"}, "no method 'basic'"),
        ((VALUES,), {"resamples": 0}, "at least 1, is 0"),
        ((VALUES, VALUES[1:]), {"paired": True}, "same length"),
    ],
)
def test_impossible_intervals_are_refused(samples, options, message):
    with pytest.raises(UserError, match=message):
        metrics.bootstrap(*samples, **options)


def test_generalisation_is_the_share_of_the_drop_that_other_wordings_have():
    before, after = np.array([0.9, 0.7]), np.array([0.1, 0.1])
    assert metrics.generalisation(before, after, before, after) == pytest.approx(1)
    reworded = np.array([0.8, 0.4, 0.6])
    got = metrics.generalisation(before, after, reworded, reworded - 0.35)
    assert got == pytest.approx(0.5)
    assert metrics.generalisation(before, after, reworded, reworded) == 0
    with pytest.raises(UserError, match="did not drop"):
        metrics.generalisation(after, after, before, after)


def test_relative_difference_is_in_per_cent():
    assert metrics.relative_difference(0.3, 0.2) == pytest.approx(50)
    assert metrics.relative_difference(0.2, 0.2) == 0
    with pytest.raises(UserError, match="reference is 0"):
        metrics.relative_difference(0.2, 0.0)
    with pytest.raises(UserError, match="value 1 is inf"):
        metrics.relative_difference(0.2, np.inf)
