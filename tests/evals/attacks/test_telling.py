"""A classifier of groups of records: chance where there is nothing, and no one in two places."""

import numpy as np
import pytest

from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError
from jaxforget.evals.attacks.telling import clusters_of, told
from jaxforget.evals.privacy import roc_auc

FEW = {"folds": 5, "repeats": 1, "penalty": 1.0}


def people(count, each, offset=0):
    return [offset + person for person in range(count) for _ in range(each)]


def test_a_record_without_the_column_stands_for_itself():
    records = [Record("q", "a", row, "f", {"person": "A"} if row else {}) for row in range(3)]
    assert clusters_of(records, "person") == [("f", 0), "A", "A"]


def test_labels_by_lot_are_not_told_and_true_ones_are():
    rng = np.random.default_rng(1)
    clusters = people(15, 5), people(25, 5, 100)
    areas = []
    for seed in range(12):
        noise = rng.normal(size=(200, 6))
        sides = told((noise[:75], noise[75:]), clusters, **FEW, seed=seed)
        areas.append(roc_auc(sides[0][:, 0], sides[1][:, 0]))
    assert abs(np.mean(areas) - 0.5) < 0.04 and np.std(areas) < 0.1
    one, other = told((noise[:75] + 1, noise[75:]), clusters, **FEW, seed=0)
    assert roc_auc(one[:, 0], other[:, 0]) > 0.9
    np.testing.assert_allclose(one.sum(1), 1, atol=1e-6)


def test_what_marks_a_person_does_not_help_to_tell_others():
    # every person is a point far from all others: records of one person in training and test
    # would give every label away, and labels are by lot
    rng = np.random.default_rng(2)
    areas = {True: [], False: []}
    for seed in range(10):
        marks = np.repeat(np.eye(20)[rng.permutation(20)], 6, axis=0)
        sets = marks[:60], marks[60:]
        for apart, clusters in (
            (True, (people(10, 6), people(10, 6, 100))),
            (False, (people(60, 1), people(60, 1, 100))),
        ):
            one, other = told(sets, clusters, **FEW, seed=seed)
            areas[apart].append(roc_auc(one[:, 0], other[:, 0]))
    assert np.mean(areas[True]) < 0.55 and np.mean(areas[False]) > 0.95


def test_three_sets_are_told_and_repeats_are_averaged():
    rng = np.random.default_rng(3)
    sets = [rng.normal(size=(30, 2)) + shift for shift in ((0, 0), (4, 0), (0, 4))]
    clusters = [people(10, 3, 100 * place) for place in range(3)]
    found = told(sets, clusters, folds=3, repeats=2, penalty=1.0, seed=0)
    assert [each.shape for each in found] == [(30, 3)] * 3
    assert all((each.argmax(1) == place).mean() > 0.8 for place, each in enumerate(found))
    once = told(sets, clusters, folds=3, repeats=1, penalty=1.0, seed=0)
    assert any((one != two).any() for one, two in zip(once, found, strict=True))


def test_a_set_of_one_person_is_refused():
    with pytest.raises(UserError, match="at least two clusters"):
        told([np.zeros((4, 1))] * 2, [people(1, 4), people(2, 2, 100)], **FEW, seed=0)
