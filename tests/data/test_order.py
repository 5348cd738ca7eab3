"""Orders of tasks and of examples."""

import numpy as np
import pytest

from jaxforget.data.order import distances, order_of
from jaxforget.data.sets import TokenisedSet


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
