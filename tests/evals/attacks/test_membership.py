"""Membership inference as an attack."""

import dataclasses

import numpy as np
import pytest
from evals import small
from evals.attacks.world import data, knowing
from sklearn.metrics import roc_auc_score

from jaxforget.evals.attacks import ATTACKS
from jaxforget.evals.attacks.catalogue import missing
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.attacks.membership import Membership, area_scores, infer, roc_curve


def never_seen():
    return small.records()["retain"]  # the world's model was taught the forget set only


def test_what_was_learnt_by_heart_is_told_from_what_was_not():
    audited = data(holdout=never_seen())
    found, fresh = (infer(lm, audited, Membership()) for lm in (knowing(), small.model()))
    assert found.known == 1.0 and found.each is None
    assert fresh.known < 1.0
    assert found.scores["auc"] == 1.0 == found.scores["auc_low"]


def test_areas_are_those_of_scikit_learn_and_the_best_counts_either_way():
    lm, audited = small.model(), data(holdout=never_seen())
    found = infer(lm, audited, Membership())
    nll = [
        known(lm, lm.params, tokens_of(lm, records, audited), audited).nll
        for records in (audited.forget, audited.holdout)
    ]
    truth = np.repeat([1, 0], [len(each) for each in nll])
    area = roc_auc_score(truth, -np.concatenate(nll))
    np.testing.assert_allclose(found.scores["auc_loss"], area, atol=1e-6)
    names = ("auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_plus_plus")
    distances = [abs(2 * found.scores[name] - 1) for name in names]
    np.testing.assert_allclose(found.known, max(distances))
    turned = infer(lm, data(forget=audited.holdout, holdout=audited.forget), Membership())
    np.testing.assert_allclose(turned.known, found.known, atol=1e-6)
    np.testing.assert_allclose(turned.scores["auc_loss"], 1 - area, atol=1e-6)


def test_the_same_text_on_both_sides_cannot_be_told_apart():
    found = infer(knowing(), data(holdout=data().forget), Membership())
    assert found.known < 0.1  # packed otherwise, rounded otherwise
    assert found.scores["auc_low"] < 0.5 < found.scores["auc_high"]


def test_the_curve_is_of_the_area_and_the_interval_holds_it():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.7, 1, 40), rng.normal(0, 1, 30)
    x, y = map(np.asarray, zip(*roc_curve(members, others), strict=True))
    found = area_scores(members, others, seed=0)
    np.testing.assert_allclose(np.trapezoid(y, x), found["auc"])
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1) and (np.diff(x) >= 0).all()
    assert found["auc_low"] < found["auc"] < found["auc_high"]


@pytest.mark.parametrize("name", ["membership"])
def test_a_holdout_set_of_two_records_is_needed(name):
    attack = ATTACKS[name]
    chosen = attack.settings()
    assert missing(attack, chosen, data()) == ["holdout"]
    few = dataclasses.replace(data(), holdout=never_seen()[:1])
    assert missing(attack, chosen, few) == ["two holdout records"]
