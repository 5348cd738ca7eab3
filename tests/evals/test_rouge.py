"""ROUGE of generated answers."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from jaxforget.engine.errors import UserError
from jaxforget.evals.rouge import rouge

TRUTHS = ["She was born in the town of Elm", "cats running quickly", "a b c d", "one two"]
ANSWERS = ["She was born in Elm town", "a cat runs quick", "d c b a", ""]


def test_scores_are_those_of_rouge_score_with_stemming():
    got = rouge(TRUTHS, ANSWERS)
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for i, (truth, answer) in enumerate(zip(TRUTHS, ANSWERS, strict=True)):
        want = scorer.score(truth, answer)
        assert got["rouge1_recall"][i] == want["rouge1"].recall
        assert got["rougeL_recall"][i] == want["rougeL"].recall
        assert got["rougeL_f1"][i] == want["rougeL"].fmeasure
    np.testing.assert_allclose(got["rougeL_recall"][2], 1 / 4)
    np.testing.assert_allclose(got["rouge1_recall"][2], 1)
    assert got["rouge1_recall"][3] == 0


def test_recall_is_of_the_truth_not_of_the_answer():
    got = rouge(["a b"], ["a b c d"])
    assert got["rougeL_recall"][0] == 1 and got["rougeL_f1"][0] == pytest.approx(2 / 3)


def test_every_truth_needs_an_answer():
    with pytest.raises(UserError, match="2 true answers but 1 generated"):
        rouge(["a", "b"], ["a"])
