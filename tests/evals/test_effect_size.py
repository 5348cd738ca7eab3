"""Hedges' g and priming against numbers worked by hand and SciPy's distributions."""

import numpy as np
import pytest
from scipy import stats

from jaxforget.engine.errors import UserError
from jaxforget.evals.effect_size import hedges_g
from jaxforget.evals.priming import memory_score, priming_correlation, priming_score


def test_hedges_g_by_hand():
    # means 4 and 2, sums of squares 2 and 2 with 3 and 3 models: s_p = 1, J = 1 - 3/15
    found = hedges_g(np.asarray([3.0, 4, 5]), np.asarray([1.0, 2, 3]))
    assert found.g == pytest.approx(2 * 0.8)
    turned = hedges_g(np.asarray([1.0, 2, 3]), np.asarray([3.0, 4, 5]))
    assert (turned.g, turned.low, turned.high) == pytest.approx((-found.g, -found.high, -found.low))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_holds_the_shifts_that_the_data_do_not_rule_out(confidence):
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.8, 1, 4), rng.normal(0, 1, 6)
    found = hedges_g(ours, theirs, confidence=confidence)
    t = stats.ttest_ind(ours, theirs).statistic
    small, scale = 1 - 3 / (4 * 10 - 9), np.sqrt(1 / 4 + 1 / 6)
    for bound, tail in ((found.low, (1 + confidence) / 2), (found.high, (1 - confidence) / 2)):
        assert stats.nct.cdf(t, 8, bound / small / scale) == pytest.approx(tail, abs=1e-8)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    effect, hits = 0.7, 0
    for _ in range(300):
        found = hedges_g(rng.normal(effect, 1, 5), rng.normal(0, 1, 5), confidence=0.8)
        small = 1 - 3 / (4 * 10 - 9)
        hits += found.low <= small * effect <= found.high
    assert 0.74 <= hits / 300 <= 0.86


@pytest.mark.parametrize(
    "groups, message",
    [
        (([1.0], [1.0, 2]), "at least two"),
        (([1.0, 1], [2.0, 2]), "neither group varies"),
        (([1e6, 1e6 + 1e-3], [0.0, 1e-3]), "beyond any interval"),
    ],
)
def test_groups_without_a_scale_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        hedges_g(*map(np.asarray, groups))


def test_memory_is_the_mean_ratio_and_its_logarithm_is_capped():
    before, after = np.log([0.1, 0.2]), np.log([0.4, 0.1])
    found = memory_score(before, after)
    assert found.ratio == pytest.approx((4 + 0.5) / 2)
    assert found.log_ratio == pytest.approx((np.log(4) + np.log(0.5)) / 2) and found.capped == 0
    same = memory_score(before, before)
    assert (same.ratio, same.log_ratio) == (1.0, 0.0)
    far = memory_score(np.asarray([-90.0, -1.0]), np.asarray([-1.0, -1.0]), cap=5)
    assert far.ratio == pytest.approx((np.exp(5) + 1) / 2) and far.capped == 0.5


def test_prompts_weigh_the_same_however_long_the_keyword():
    before = [np.log([0.1]), np.log([0.1, 0.1, 0.1])]
    after = [np.log([0.4]), np.log([0.1, 0.1, 0.1])]
    assert priming_score(before, after).ratio == pytest.approx(2.5)
    with pytest.raises(UserError, match="2 prompts before but 1"):
        priming_score(before, after[:1])


def test_the_correlation_is_spearmans_beside_its_control():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=20), rng.normal(size=20)
    prime = after - before
    found = priming_correlation(prime, before, after)
    assert found.before == pytest.approx(stats.spearmanr(prime, before).statistic)
    assert found.after_p == pytest.approx(stats.spearmanr(prime, after).pvalue)
    assert found.before < -0.4 < 0.4 < found.after
    with pytest.raises(UserError, match="three texts that differ"):
        priming_correlation(prime, before, np.zeros(20))
