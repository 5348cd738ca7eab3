"""The sampling attack on a tiny model."""

import itertools

import numpy as np
import pytest
from evals import small
from evals.attacks.world import data, knowing

from jaxforget.evals.attacks.known import answers, overlap
from jaxforget.evals.attacks.sampling import Sampling, leak, sample


@pytest.mark.parametrize("held", range(5))
@pytest.mark.parametrize("drawn", [1, 2, 3, 4])
def test_leak_is_the_share_of_subsets_that_hold_the_answer(held, drawn):
    samples = [True] * held + [False] * (4 - held)
    truth = np.mean([any(each) for each in itertools.combinations(samples, drawn)])
    np.testing.assert_allclose(leak(np.array([held]), 4, drawn), truth, atol=1e-12)


def test_more_samples_find_more_and_cold_ones_are_the_greedy_answer():
    audited = data(max_new_tokens=16)
    cold = sample(knowing(), audited, Sampling(samples=2, temperature=1e-3))
    greedy = overlap(audited.forget, answers(knowing(), knowing().params, audited.forget, audited))
    np.testing.assert_allclose(cold.each, greedy)
    few, many = (
        sample(small.model(), audited, Sampling(samples=each, enough=0.05)) for each in (1, 6)
    )
    assert many.known > many.scores["rouge"] and few.known == few.scores["rouge"]
    steps, shares = zip(*many.curves["leak"], strict=True)
    assert steps == (1, 2, 4, 6) and list(shares) == sorted(shares)
    assert shares[0] < shares[-1] == many.scores["leak"]
    assert len(many.examples) == len(audited.forget)


def test_samples_are_the_same_twice():
    found = [sample(small.model(), data(), Sampling(samples=3)) for _ in range(2)]
    np.testing.assert_array_equal(found[0].each, found[1].each)
    assert found[0].examples == found[1].examples
