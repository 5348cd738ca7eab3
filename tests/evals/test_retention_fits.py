"""Laws of forgetting against what made them."""

import numpy as np
import pytest
from scipy import stats

from jaxforget.engine.errors import UserError
from jaxforget.evals.retention_fits import LAWS, best_fit, fit

TIMES = np.asarray([0, 1, 2, 4, 8, 16, 32, 64, 128, 256.0])


@pytest.mark.parametrize("law, b", [("power", 0.3), ("exponential", 0.02), ("logarithmic", 0.2)])
def test_a_law_is_found_again_and_chosen_by_aic(law, b):
    noise = np.random.default_rng(1).normal(0, 0.01, len(TIMES))
    values = LAWS[law](TIMES, 0.8, b) + noise
    best, fits = best_fit(TIMES, values, tuple(LAWS))
    assert best.law == law and set(fits) == set(LAWS)
    assert best.c == pytest.approx(0.8, abs=0.03) and best.b == pytest.approx(b, rel=0.1)
    rss = ((values - best(TIMES)) ** 2).sum()
    assert best.aic == pytest.approx(len(TIMES) * np.log(rss / len(TIMES)) + 6)
    assert best.r2 == pytest.approx(1 - rss / ((values - values.mean()) ** 2).sum())


@pytest.mark.parametrize("law, b", [("power", 0.3), ("exponential", 0.02), ("logarithmic", 0.2)])
def test_half_of_the_start_is_left_at_the_half_life(law, b):
    found = fit(TIMES, LAWS[law](TIMES, 0.8, b), law)
    assert found(np.asarray([found.half_life]))[0] == pytest.approx(0.4, rel=1e-4)
    assert fit(TIMES, LAWS[law](TIMES, 0.8, -1e-4), law).half_life == np.inf


def test_the_band_of_a_linear_law_is_the_textbook_one():
    values = 1 - 0.2 * np.log10(1 + TIMES) + np.random.default_rng(0).normal(0, 0.03, len(TIMES))
    low, high = fit(TIMES, values, "logarithmic").band(TIMES, 0.9)
    x = np.log10(1 + TIMES)
    line = stats.linregress(x, values)
    left = values - line.intercept - line.slope * x
    error = np.sqrt((left**2).sum() / (len(x) - 2))
    reach = error * np.sqrt(1 / len(x) + (x - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    np.testing.assert_allclose((high - low) / 2, reach * stats.t.ppf(0.95, len(x) - 2), rtol=1e-5)


def test_too_few_points_are_refused():
    with pytest.raises(UserError, match="three finite points"):
        fit(np.asarray([0, 1, 2]), np.asarray([1, 0.5, np.nan]), "power")
