"""Exact match and overlap of words against right wordings, counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics
from jaxforget.evals.short_answers import normalised

WORDS = st.lists(st.sampled_from(["red", "Fox", "the", "an", "ran", "2"]), max_size=6).map(" ".join)


def test_articles_punctuation_and_case_do_not_count():
    assert normalised("The  quick, (brown) Fox!") == "quick brown fox"
    got = metrics.exact_matches([["the Fox"], ["Fox", "dog"], ["fox"]], ["fox.", "A dog", "foxes"])
    np.testing.assert_array_equal(got, [1, 1, 0])


def test_f1_counts_repeated_words_once_each_and_takes_the_nearest_wording():
    got = metrics.token_f1([["red red fox"], ["x", "red fox"], ["the"]], ["red dog", "red", "a"])
    np.testing.assert_allclose(got, [2 * 1 / 5, 2 / 3, 1.0])


@given(WORDS, WORDS)
def test_f1_is_symmetric_harmonic_and_one_for_equals(truth, answer):
    (got,), (back,) = metrics.token_f1([[truth]], [answer]), metrics.token_f1([[answer]], [truth])
    want, have = normalised(truth).split(), normalised(answer).split()
    assert got == back and metrics.token_f1([[truth]], [truth])[0] == 1
    if want and have:
        left = list(want)
        common = 0
        for word in have:
            if word in left:
                left.remove(word)
                common += 1
        precision, recall = common / len(have), common / len(want)
        both = precision + recall
        assert got == pytest.approx(2 * precision * recall / both if both else 0.0)
    else:
        assert got == float(want == have)


def test_odd_inputs_are_refused():
    for truths, answers in (([], []), (["a"], ["a"]), ([["a"]], ["a", "b"]), ([[]], ["a"])):
        with pytest.raises(UserError, match="short answers"):
            metrics.token_f1(truths, answers)
