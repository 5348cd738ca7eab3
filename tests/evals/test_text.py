"""Generated texts: refusals, repetition and variety, against counts made by hand."""

import collections
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats

from jaxforget.data import alternates
from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics

ANSWERS = (
    "The author was born in Elm in 1963.",
    "I don't only write novels; I paint.",
    "Her father, a florist, can't be found in the records after 1980.",
    "I knew him well.",
    "It is something I wrote about in The Unknown Shore.",
    "42",
    "",
)
TEXTS = st.lists(st.text("ab c.", max_size=30), min_size=1, max_size=5)


def words(text):
    return [word for word in re.split(r"\s+|(\.)", text) if word]


def ngrams(text, n):
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def test_every_refusal_that_is_trained_towards_is_recognised_and_no_answer_is():
    assert metrics.refusals(alternates.REFUSALS).all()
    curly = [text.replace("'", "\u2019").upper() for text in alternates.REFUSALS]
    assert metrics.refusals(curly).all()
    assert not metrics.refusals(ANSWERS).any()
    both = [*alternates.REFUSALS[:1], *ANSWERS[:3]]
    assert metrics.refusal_rate(both) == metrics.safe_answer_refusal_rate(both) == 0.25


def test_patterns_are_the_users_where_given():
    got = metrics.refusals(["No comment.", "I don't know"], patterns=["no comment"])
    assert got.tolist() == [True, False]
    with pytest.raises(UserError, match="'\\(' is no regular expression"):
        metrics.refusals(["a"], patterns=["("])


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(1, 4))
def test_ngram_metrics_are_counts(texts, n):
    for text, entropy, repeated in zip(
        texts,
        metrics.ngram_entropy(texts, n=n),
        metrics.repetition_rate(texts, n=n),
        strict=True,
    ):
        found = ngrams(text, n)
        counts = list(collections.Counter(found).values())
        want = stats.entropy(counts, base=2) if counts else 0.0
        assert entropy == pytest.approx(want, abs=1e-12)
        assert repeated == pytest.approx(1 - len(counts) / len(found) if found else 0.0)
    together = [each for text in texts for each in ngrams(text, n)]
    want = len(set(together)) / len(together) if together else 0.0
    assert metrics.distinct_n(texts, n=n) == pytest.approx(want)


def test_generation_entropy_weights_bigrams_and_trigrams():
    text = "a b c d a b"
    want = 2 / 3 * (2 * 0.2 + 0.4) * 0 + 0  # written out below
    bigrams = -(0.4 * math.log2(0.4) + 3 * 0.2 * math.log2(0.2))
    want = (2 / 3 * bigrams + 4 / 3 * math.log2(4)) / 2
    assert metrics.generation_entropy([text])[0] == pytest.approx(want)
    assert metrics.generation_entropy(["word"])[0] == 0


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("", "empty"),
        (" ?! ", "empty"),
        ("the cat sat " * 6, "circular"),
        ("{{}} <|> a $$ %%", "symbols"),
        ("well aaaaaaaaaaaaaa", "stutter"),
        ("xkcd qwrtp zzgh bcdf", "unpronounceable"),
    ],
)
def test_gibberish_heuristics_name_what_they_see(text, sign):
    assert metrics.gibberish_heuristics([text])[sign].tolist() == [True]
    assert metrics.gibberish_rate([text, ANSWERS[0]]) == 0.5


def test_ordinary_answers_are_no_gibberish():
    assert metrics.gibberish_rate([*ANSWERS[:-1], *alternates.REFUSALS]) == 0


def test_muse_memorisation_is_rouge_f1_of_the_cut_answer_without_stemming():
    truths = ["the cats were running home", "Paris"]
    given = ["the cat was running home\n\nQuestion: who?", "Paris Question: the city?"]
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    want = [
        scorer.score(truths[0], "the cat was running home")["rougeL"].fmeasure,
        scorer.score(truths[1], "Paris")["rougeL"].fmeasure,
    ]
    np.testing.assert_allclose(metrics.knowledge_memorization(truths, given), want, rtol=1e-12)
    whole = [scorer.score(t, g)["rougeL"].fmeasure for t, g in zip(truths, given, strict=True)]
    np.testing.assert_allclose(metrics.verbatim_memorization(truths, given), whole, rtol=1e-12)
    assert want != whole
    np.testing.assert_allclose(metrics.knowledge_memorization(truths, given, stop=()), whole)
    with pytest.raises(UserError, match="empty stop word"):
        metrics.knowledge_memorization(truths, given, stop=("",))


def test_no_text_and_one_text_for_many_are_refused():
    for metric in (
        metrics.refusals,
        metrics.ngram_entropy,
        metrics.repetition_rate,
        metrics.distinct_n,
        metrics.gibberish_heuristics,
    ):
        with pytest.raises(UserError, match="empty set"):
            metric([])
        with pytest.raises(UserError, match="give a list of texts"):
            metric("one text")
    with pytest.raises(UserError, match="empty set"):
        metrics.rouge([], [])
    with pytest.raises(UserError, match="n is 0"):
        metrics.distinct_n(["a"], n=0)
