"""Factual acquisition against numbers worked by hand."""

import numpy as np
import pytest

from jaxforget.engine.errors import UserError
from jaxforget.evals import acquisition as acq

LOOKS = np.arange(12)
# two encounters, at updates 1 and 5, window 3; columns are two probes
FIRST = [-9, -8, -6, -5, -5.5, -6, -7, -3, -2, -4, -5, -6]
SECOND = [-4, -4, -5, -4.5, -4.5, -4.2, -4, -3, -3.5, -3.8, -4, -4.4]
CURVES = np.asarray([FIRST, SECOND], float).T


def test_local_maximum_is_the_first_best_look_after_the_encounter_and_within_the_window():
    # (1, 4] holds looks 2, 3, 4; (5, 8] holds 6, 7, 8
    assert acq.local_maximum(CURVES, LOOKS, 1, 3).tolist() == [3, 3]
    assert acq.local_maximum(CURVES, LOOKS, 5, 3).tolist() == [8, 7]
    with pytest.raises(UserError, match="no look within 1 updates after update 11"):
        acq.local_maximum(CURVES, LOOKS, 11, 1)


def test_effectivity_is_the_rise_from_just_before_and_may_be_negative():
    found = acq.effectivity(CURVES, LOOKS, [1, 5], 3)
    np.testing.assert_allclose(found, [[3.0, -0.5], [4.0, 1.2]], atol=1e-12)
    with pytest.raises(UserError, match="just before update 3"):
        acq.effectivity(CURVES[::2], LOOKS[::2], [3], 3)


def test_retainability_is_one_at_the_maximum_and_relative_to_before_the_first_encounter():
    found = acq.retainability(CURVES, LOOKS, [1, 5], 3, np.asarray([0, 1, 3, 4]))
    # probe 0: from -8 to -2 at look 8; probe 1: from -4 to -3 at look 7
    expected = [[1, 1], [4 / 6, 0.5], [2 / 6, 0.0], [np.nan, -0.4]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_retainability_of_what_gained_nothing_is_masked():
    flat = np.full((12, 1), -3.0)
    assert np.isnan(acq.retainability(flat, LOOKS, [1, 5], 3, np.arange(4))).all()
    assert (acq.effectivity(flat, LOOKS, [1, 5], 3) == 0).all()
    assert np.isnan(acq.filtered_mean(np.full((4, 1), np.nan))).all()


@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_outliers_go_by_numpys_quartiles_and_nan_does_not_count(factor):
    values = np.asarray([1.0, 2.0, 3.0, 4.0, np.nan, 8.4, 9.4, -60.0])
    low, high = np.nanquantile(values, [0.25, 0.75])
    kept = values[
        (values >= low - factor * (high - low)) & (values <= high + factor * (high - low))
    ]
    assert acq.filtered_mean(values, factor) == pytest.approx(kept.mean())
    assert -60 not in acq.without_outliers(values, factor)


def test_a_logarithmic_decay_gives_its_constant_and_its_intercept():
    times = np.arange(0, 800)
    a, b = 0.23, 0.91
    shares = b - a * np.log10(np.maximum(times, 1))
    shares[0] = 1.0
    fit = acq.decay(times, shares)
    assert fit.constant == pytest.approx(a, abs=1e-6) and fit.intercept == pytest.approx(b)
    assert fit.r2 == pytest.approx(1) and fit.threshold == pytest.approx(10 ** (b / a))
    assert fit.points == 799


def test_decay_is_fitted_before_nothing_is_retained_and_needs_two_times():
    times = np.asarray([0, 1, 10, 100, 1000, 10000])
    fit = acq.decay(times, np.asarray([1.0, 0.8, 0.4, 0.0, 0.7, 0.9]))
    assert fit.points == 2 and fit.constant == pytest.approx(0.4)
    assert fit.threshold == pytest.approx(100)
    assert acq.decay(times[:2], np.ones(2)).points == 0
    rising = acq.decay(times, np.asarray([1.0, 0.5, 0.6, 0.7, 0.8, 0.9]))
    assert rising.constant == pytest.approx(-0.1) and np.isnan(rising.threshold)


def test_bootstrap_resamples_facts_whole_and_covers_the_mean():
    rng = np.random.default_rng(0)
    times = acq.log_times(1, 500)
    facts = np.repeat(np.arange(8), 5)
    own = rng.normal(0, 0.05, 8)[facts]
    shares = 0.9 - 0.2 * np.log10(np.maximum(times, 1))[:, None] + own
    found = acq.retention(times, shares, facts, resamples=300)
    assert found.fit.constant == pytest.approx(0.2, abs=0.02) and found.probes == 40
    assert found.constant[0] <= found.fit.constant + 1e-9
    # probes of a fact are equal, so the spread is that of eight values, not of forty
    width = np.median(found.high - found.low)
    assert width == pytest.approx(2 * 1.96 * own[::5].std() / np.sqrt(8), rel=0.35)
    again = acq.retention(times, shares, facts, resamples=300)
    np.testing.assert_array_equal(found.low, again.low)


def test_log_times_are_multiples_and_reach_the_end():
    times = acq.log_times(4, 203, 20)
    assert times[0] == 0 and times[1] == 4 and times[-1] == 200
    assert (times % 4 == 0).all() and (np.diff(times) > 0).all()
