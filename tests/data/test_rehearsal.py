"""How rehearsal is divided between finished tasks, and the room between two visits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.data.rehearsal import counts, rehearsed, shares
from jaxforget.data.stream import Draws, walk
from jaxforget.engine.errors import UserError

AGES = [4, 3, 2, 1]


def test_shares_follow_the_age():
    np.testing.assert_allclose(shares(AGES, "power", 1.0), np.array([3, 4, 6, 12]) / 25)
    np.testing.assert_allclose(shares(AGES, "power", 0.0), 0.25)
    np.testing.assert_allclose(shares(AGES, "tasks", 5.0), 0.25)
    np.testing.assert_allclose(shares(AGES, "power", 1e4), [0, 0, 0, 1], atol=1e-12)
    exponential = np.exp(-0.5 * np.asarray(AGES))
    np.testing.assert_allclose(
        shares(AGES, "exponential", 0.5), exponential / exponential.sum(), rtol=1e-12
    )
    # renaming tasks renames their shares
    assert shares(AGES[::-1], "power", 0.7).tolist() == shares(AGES, "power", 0.7)[::-1].tolist()
    with pytest.raises(UserError, match="rate"):
        shares(AGES, "power", -1.0)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(0, 200), st.integers(0, 3))
def test_counts_meet_the_budget_and_the_parts(parts, total, least):
    parts = np.asarray(parts) / np.sum(parts)
    found = counts(parts, total, least)
    assert found.sum() == total
    if not least:
        assert np.all(np.abs(found - parts * total) < 1)
    if total >= least * len(parts):
        assert found.min() >= least


def test_counts_round_by_the_largest_remainder():
    assert counts(np.array([0.5, 0.3, 0.2]), 7).tolist() == [4, 2, 1]
    assert counts(shares(AGES, "power", 1e4), 10, 1).tolist() == [1, 1, 1, 7]


def test_what_is_rehearsed_has_its_counts_everywhere():
    groups = [np.arange(0, 5), np.arange(10, 13)]
    found = rehearsed(groups, np.array([40, 20]), (0, 1))
    assert len(found) == 60 and (found >= 10).sum() == 20
    for start in range(0, 60, 12):  # a third of every stretch
        assert abs((found[start : start + 12] >= 10).sum() - 4) <= 1
    assert set(np.unique(found, return_counts=True)[1][:5]) == {8}
    draws = Draws(np.arange(100, 120), found, 8, (0, 1), share=0.5, in_turn=True)
    taken = np.concatenate([draws(step)["train"][4:] for step in range(15)])
    np.testing.assert_array_equal(taken, found)


@given(st.integers(2, 9), st.integers(1, 4))
def test_views_multiply_the_interval_between_visits(size, views):
    ids = np.arange(size)
    taken = walk(ids, 0, 4 * size * views, (3, 0), views=views)
    # as many views of each, V in a row
    assert np.bincount(taken).tolist() == [4 * views] * size
    runs = taken.reshape(-1, views)
    assert np.all(runs == runs[:, :1])
    # on average size x views between the beginnings of two visits
    for one in range(size):
        places = np.flatnonzero(runs[:, 0] == one) * views
        assert np.all(places // (size * views) == np.arange(4))
    np.testing.assert_array_equal(walk(ids, 0, 30, (3, 0), views=1), walk(ids, 0, 30, (3, 0)))


def test_an_order_is_kept_where_nothing_is_shuffled():
    draws = Draws(np.array([5, 3, 9]), np.zeros(0, np.int64), 2, (0, 0), shuffled=False)
    taken = np.concatenate([draws(step)["train"] for step in range(3)])
    assert taken.tolist() == [5, 3, 9, 5, 3, 9]
    assert draws.fingerprint != Draws(draws.ids, draws.memory, 2, (0, 0)).fingerprint
