"""Judging metrics: the formulas by hand."""

import math

import pytest

from jaxforget.evals.meta import (
    KNOWLEDGE,
    Altered,
    harmonic,
    judged,
    knowledge,
    quantisation_robustness,
    relearning_robustness,
)


@pytest.mark.parametrize(
    "change, oracle_change, expected",
    [(0.4, 0.1, 0.25), (0.1, 0.4, 1.0), (0.2, 0.2, 1.0), (0.3, -0.1, 0.0), (-0.2, 0.1, 1.0)],
)
def test_relearning_robustness_by_hand(change, oracle_change, expected):
    assert math.isclose(relearning_robustness(change, oracle_change), expected)


@pytest.mark.parametrize(
    "before, after, expected",
    [(0.2, 0.4, 0.5), (0.4, 0.2, 1.0), (0.0, 0.3, 0.0), (0.0, 0.0, 1.0), (0.3, 0.3, 1.0)],
)
def test_quantisation_robustness_by_hand(before, after, expected):
    assert math.isclose(quantisation_robustness(before, after), expected)


def test_harmonic_means_by_hand():
    assert harmonic(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic(0.0, 1.0) == 0.0
    assert harmonic(None, 1.0) is None


def test_every_metric_is_turned_towards_knowledge():
    knows = {name: 0.9 for name in KNOWLEDGE}
    assert knowledge(knows, "forget_prob") == 0.9
    assert knowledge(knows, "forget_truth_ratio") == pytest.approx(0.1)
    assert knowledge({"forget_perplexity": 4.0}, "forget_perplexity") == 0.25
    assert knowledge({}, "forget_prob") is None


def test_metrics_are_ranked_by_what_they_can_tell():
    def model(prob, rouge, refusals):
        return {"forget_prob": prob, "forget_rouge": rouge, "forget_refusal_rate": refusals}

    knowing = [model(0.9, 0.5, 0.0), model(0.6, 0.4, 0.2)]
    ignorant = [model(0.1, 0.45, 0.2), model(0.2, 0.1, 0.4)]
    # prob: the unlearned model rises by 0.4 and the oracle by 0.1; rouge: both by 0.1
    relearned = [Altered("npo", model(0.1, 0.2, 0.5), model(0.5, 0.3, 0.5))]
    oracle = Altered("oracle", model(0.1, 0.2, 0.5), model(0.2, 0.3, 0.5))
    rounded = [Altered("npo", model(0.1, 0.2, 0.5), model(0.2, 0.2, 0.5))]
    found = judged(knowing, ignorant, relearned, oracle, rounded)
    by_name = {each.metric: each for each in found}
    assert by_name.keys() == set(knowing[0])
    prob, rouge = by_name["forget_prob"], by_name["forget_rouge"]
    assert (prob.faithfulness, prob.relearning, prob.quantisation) == pytest.approx((1, 0.25, 0.5))
    assert prob.robustness == pytest.approx(1 / 3) and prob.overall == pytest.approx(0.5)
    # three of four pairs are told apart
    assert (rouge.faithfulness, rouge.robustness) == pytest.approx((0.75, 1.0))
    assert by_name["forget_refusal_rate"].faithfulness == pytest.approx(0.875)  # a tie is a half
    order = [each.overall for each in found]
    assert order == sorted(order, reverse=True) and found[-1].metric == "forget_prob"


def test_what_some_model_has_not_is_left_out_or_last():
    full, empty = {"forget_prob": 0.5, "forget_rouge": 0.5}, {"forget_prob": 0.1}
    same = Altered("npo", full, {"forget_prob": 0.5})
    found = judged([full], [empty], [same], same, [same])
    assert [each.metric for each in found] == ["forget_prob"]
    lacking = Altered("npo", {}, {})
    (only,) = judged([full], [empty], [lacking], lacking, [lacking])
    assert only.faithfulness == 1.0 and only.overall is None
