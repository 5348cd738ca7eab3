"""Measures of what is kept, against matrices and curves worked out by hand and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxforget.evals import forgetting

# rows: start, after task 1, 2, 3
SCORES = np.array([[0.1, 0.2, 0.3], [0.9, 0.4, 0.3], [0.7, 0.8, 0.5], [0.8, 0.6, 0.95]])
numbers = st.floats(-5, 5, width=32)
matrices = st.integers(2, 5).flatmap(
    lambda n: arrays.arrays(np.float64, (n + 1, n), elements=numbers)
)
curve = arrays.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=numbers)


def test_a_matrix_worked_by_hand():
    assert forgetting.average(SCORES) == pytest.approx((0.8 + 0.6 + 0.95) / 3)
    incremental = (0.9 + (0.7 + 0.8) / 2 + (0.8 + 0.6 + 0.95) / 3) / 3
    assert forgetting.average_incremental(SCORES) == pytest.approx(incremental)
    assert forgetting.backward_transfer(SCORES) == pytest.approx((0.8 - 0.9 + 0.6 - 0.8) / 2)
    assert forgetting.forward_transfer(SCORES) == pytest.approx((0.4 - 0.2 + 0.5 - 0.3) / 2)
    random = np.array([0.0, 0.1, 0.1])
    assert forgetting.forward_transfer(SCORES, random) == pytest.approx((0.3 + 0.4) / 2)
    assert forgetting.forgetting(SCORES) == pytest.approx((0.9 - 0.8 + 0.8 - 0.6) / 2)
    assert forgetting.transfer_by_distance(SCORES) == pytest.approx(
        {
            -2: 0.3 - 0.3,  # task 3 after task 1
            -1: (0.4 - 0.2 + 0.5 - 0.3) / 2,
            0: (0.9 - 0.1 + 0.8 - 0.2 + 0.95 - 0.3) / 3,
            1: (0.7 - 0.1 + 0.6 - 0.2) / 2,
            2: 0.8 - 0.1,
        }
    )
    joint = np.array([0.95, 0.9, 0.9])
    np.testing.assert_allclose(forgetting.intransigence(SCORES, joint), [0.05, 0.1, -0.05])


def test_forgetting_looks_no_further_back_than_a_task_s_own_end():
    """Cells before it may hold anything, such as the zeros that some tools put there."""
    negative = SCORES - 2.0
    padded = np.where(np.arange(4)[:, None] > np.arange(3)[None], negative, 0.0)
    assert forgetting.forgetting(padded) == pytest.approx(forgetting.forgetting(negative))


@given(matrices)
def test_invariants_of_the_matrix(scores):
    assert forgetting.forgetting(scores) >= -forgetting.backward_transfer(scores) - 1e-9
    for measure in (forgetting.backward_transfer, forgetting.forgetting):
        assert measure(scores + 3.0) == pytest.approx(measure(scores), abs=1e-9)
    still = np.repeat(scores[:1], len(scores), axis=0)
    assert forgetting.backward_transfer(still) == forgetting.forgetting(still) == 0
    if scores.shape[1] == 2:
        assert forgetting.forgetting(scores) == pytest.approx(
            -forgetting.backward_transfer(scores), abs=1e-9
        )
    assert forgetting.average(scores + 3.0) == pytest.approx(forgetting.average(scores) + 3.0)
    other = np.random.default_rng(0).permutation(scores.shape[1])  # the tasks by other numbers
    assert forgetting.average(scores[:, other]) == pytest.approx(forgetting.average(scores))


@given(matrices)
def test_nothing_but_forgetting_where_every_task_is_best_at_its_own_end(scores):
    count = scores.shape[1]
    for task in range(count - 1):
        scores[task + 1, task] = scores[task + 1 : count, task].max()
    assert forgetting.forgetting(scores) == pytest.approx(
        -forgetting.backward_transfer(scores), abs=1e-9
    )


def test_a_single_task_has_nothing_to_forget():
    one = np.array([[0.1], [0.9]])
    assert math.isnan(forgetting.backward_transfer(one)) and math.isnan(forgetting.forgetting(one))


def test_curves_worked_by_hand():
    curves = np.array([[0.1, 0.1], [0.8, 0.2], [0.3, 0.6], [0.6, 0.9]])
    ends = [1, 3]
    assert forgetting.worst(curves, ends) == pytest.approx(0.3)
    assert forgetting.worst_case(curves, ends) == pytest.approx(0.9 / 2 + 0.3 / 2)
    assert math.isnan(forgetting.worst(curves, ends, now=1))
    assert forgetting.learning_curve_area(curves, [0, 1], 2) == pytest.approx(
        ((0.1 + 0.8 + 0.3) / 3 + (0.2 + 0.6 + 0.9) / 3) / 2
    )
    assert forgetting.recovery_looks(curves, ends, 0, share=0.5) == 2
    assert forgetting.recovery_looks(curves, ends, 0) is None
    assert forgetting.recovery_looks(curves, ends, 1) == 0


def test_plasticity_counts_rises_that_follow_a_drop():
    """Where the published code, which keeps the running maximum, finds 0.75 and 0."""
    (found,) = forgetting.windowed_plasticity(np.array([[0.2], [0.9], [0.1], [0.95]]), 4)
    assert found == pytest.approx(0.85)
    (lost,) = forgetting.windowed_forgetting(np.array([[0.2], [0.9], [0.1], [0.95]]), 4)
    assert lost == pytest.approx(0.8)
    (found,) = forgetting.windowed_plasticity(np.array([[0.9], [0.1], [0.8]]), 3)
    assert found == pytest.approx(0.7)


@given(curve, st.integers(1, 14))
def test_windows_against_brute_force(curves, window):
    for measure, sign in (
        (forgetting.windowed_forgetting, -1),
        (forgetting.windowed_plasticity, 1),
    ):
        wanted = [
            max(
                [0.0]
                + [
                    sign * (curves[n, i] - curves[m, i])
                    for n in range(len(curves))
                    for m in range(max(0, n - window + 1), n)
                ]
            )
            for i in range(curves.shape[1])
        ]
        np.testing.assert_allclose(measure(curves, window), wanted, atol=1e-12)
        assert np.all(measure(curves, window) <= measure(curves, window + 1))
        assert np.all(measure(curves, 1) == 0)


@given(curve, st.integers(1, 14))
def test_windows_know_no_level_and_only_grow_with_time(curves, window):
    for measure in (forgetting.windowed_forgetting, forgetting.windowed_plasticity):
        found = measure(curves, window)
        np.testing.assert_allclose(measure(curves + 3.0, window), found, atol=1e-12)
        assert np.all(measure(curves[:-1], window) <= found)
        assert np.all(measure(np.repeat(curves[:1], len(curves), axis=0), window) == 0)


@given(curve.filter(lambda c: len(c) >= 3), st.data())
def test_the_worst_case_bounds_the_average_from_below(curves, data):
    first = data.draw(st.integers(0, len(curves) - 2))
    ends = [first, len(curves) - 1]
    assert forgetting.worst_case(curves, ends) <= curves[-1].mean() + 1e-9
