"""AUCs of clustered examples against the plain ones, and against draws made one by one."""

import numpy as np
import pytest

from jaxforget.engine.errors import UserError
from jaxforget.evals.clustered import clustered_auc, difference, mean_area
from jaxforget.evals.privacy import roc_auc


def sample(seed, people=6, each=4, spread=1.0):
    """(scores, clusters) of either side; records of one person are alike."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(people), each)
    sides = [spread * rng.normal(size=people)[clusters] + rng.normal(size=len(clusters))] * 2
    sides = [
        side + rng.normal(size=len(side)) + shift for side, shift in zip(sides, (1, 0), strict=True)
    ]
    return {
        "members": sides[0],
        "others": sides[1],
        "member_clusters": clusters.tolist(),
        "other_clusters": [f"o{each}" for each in clusters],
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_value_is_the_plain_auc_and_ties_count_one_half(seed):
    made = sample(seed)
    made["members"], made["others"] = (np.round(made[k]) for k in ("members", "others"))
    found = clustered_auc(**made, resamples=5)
    np.testing.assert_allclose(found.value, roc_auc(made["members"], made["others"]), atol=1e-12)


def test_every_draw_is_the_auc_of_the_drawn_people():
    made = sample(0)
    found = clustered_auc(**made, resamples=20, seed=3)
    rng = np.random.default_rng(3)
    counts = [rng.multinomial(6, np.full(6, 1 / 6), 20) for _ in range(2)]
    for draw, *drawn in zip(found.draws, *counts, strict=True):
        # the reference repeats the records of a person as often as the person is drawn
        sides = [
            np.repeat(made[name], np.repeat(times, 4))
            for name, times in zip(("members", "others"), drawn, strict=True)
        ]
        np.testing.assert_allclose(draw, roc_auc(*sides), atol=1e-12)


def test_people_drawn_whole_make_wider_intervals_and_single_records_the_usual_one():
    made = sample(1, people=30, each=8, spread=3.0)
    alone = {**made, "member_clusters": range(240), "other_clusters": range(240, 480)}
    whole, single = (clustered_auc(**each, seed=0) for each in (made, alone))
    low, high = whole.interval()
    assert low < whole.value < high
    assert whole.draws.std() > 1.5 * single.draws.std()
    # Hanley and McNeil's error of an AUC of independent examples
    area, count = single.value, 240
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (count - 1) * (q1 + q2 - 2 * area**2)) / count**2
    np.testing.assert_allclose(single.draws.std(), np.sqrt(variance), rtol=0.15)


def test_differences_are_paired_and_means_are_over_independent_samples():
    made = sample(2)
    one = clustered_auc(**made, seed=1)
    same = difference(one, clustered_auc(**made, seed=1))
    assert same.value == 0 and (same.draws == 0).all()
    both = mean_area([one, clustered_auc(**sample(3), seed=2)])
    assert both.draws.std() < one.draws.std()
    np.testing.assert_allclose(both.value, (one.value + clustered_auc(**sample(3)).value) / 2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"other_clusters": ["o"] * 24}, "two clusters on each side"),
        ({"member_clusters": [0, 1]}, "every example needs a cluster"),
        ({"members": np.full(24, np.nan)}, "AUC"),
    ],
)
def test_what_has_no_interval_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        clustered_auc(**{**sample(0), **changes})
