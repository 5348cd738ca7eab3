"""Orders of tasks and of examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.data.order import distances, folded, order_of, selected
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError


def words(*ids):
    tokens = np.asarray(ids, np.int32)
    ends = np.array([0, len(ids)])
    return TokenisedSet(tokens, tokens, np.ones(len(ids), bool), ends, np.zeros(1), str(ids))


def test_tasks_are_ordered_by_likeness():
    sets = [words(1, 1, 2), words(5, 5, 6), words(1, 2, 2), words(5, 6, 1)]
    apart = distances(sets, 8)
    assert apart[0, 1] == pytest.approx(np.log(2)) and apart[2, 2] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(apart, apart.T)
    assert order_of("similar", sets, 8) == [0, 2, 3, 1]
    assert order_of("dissimilar", sets, 8)[:2] == [0, 1]
    assert order_of("reversed", sets, 8) == [3, 2, 1, 0]
    assert order_of("given", sets, 8) == [0, 1, 2, 3]
    assert sorted(order_of("random", sets, 8, 1)) == [0, 1, 2, 3]


def test_folding_is_the_card_s():
    """Ranks 1 .. 7 of scores in disorder, three layers."""
    scores = np.array([0.4, 0.1, 0.7, 0.2, 0.6, 0.3, 0.5])
    ranks = np.argsort(np.argsort(scores)) + 1
    assert ranks[folded(scores, 3)].tolist() == [1, 4, 7, 2, 5, 3, 6]
    assert ranks[folded(scores, 3, first=1)].tolist() == [3, 6, 1, 4, 7, 2, 5]
    for first in (0, 1):
        assert ranks[folded(scores, 1, first)].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert ranks[folded(scores, 7)].tolist() == [1, 2, 3, 4, 5, 6, 7]


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.integers(1, 40),
    st.sampled_from([0, 1]),
)
def test_folds_are_rising_parts_of_a_permutation(values, layers, first):
    scores = np.asarray(values)
    order = folded(scores, layers, first)
    assert sorted(order) == list(range(len(scores)))
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable") + first
    for fold in range(layers):
        own = [place for place in order if ranks[place] % layers == fold]
        assert np.all(np.diff(scores[own]) >= 0)
    assert np.all(np.diff(ranks[order] % layers) >= 0)


def test_the_best_examples_are_selected():
    scores = np.array([3.0, 1.0, 2.0, 3.0, 0.0])
    assert selected(scores, 0.4).tolist() == [0, 3]
    assert selected(scores, 0.7).tolist() == [0, 2, 3]  # floor(3.5)
    assert selected(scores, 1.0).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="none at all"):
        selected(scores, 0.1)
    with pytest.raises(UserError, match="finite"):
        folded(np.array([1.0, np.nan]), 2)
    with pytest.raises(UserError, match="layers"):
        folded(scores, 0)
