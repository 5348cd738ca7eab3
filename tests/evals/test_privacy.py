"""Membership attacks against definitions written out, and their judges against scikit-learn."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics, privacy

seeds = given(st.integers(0, 2**31))


def table(seed):
    """Log-probabilities of examples and the whole distributions they were drawn from."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, rng.integers(1, 8))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    p = rng.dirichlet(np.full(7, 0.5), offsets[-1]) + 1e-6
    p /= p.sum(1, keepdims=True)
    logp = np.log(p[np.arange(len(p)), rng.integers(0, 7, len(p))])
    return logp, p, offsets


def examples(values, offsets):
    return [values[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def scores(seed):
    """Two samples on a coarse grid, so that ties within and between them are common."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, 2)
    return rng.integers(0, 6, sizes[0]) / 4 + rng.random() / 2, rng.integers(0, 6, sizes[1]) / 4


@settings(max_examples=30, deadline=None)
@seeds
@pytest.mark.parametrize("share", [0.01, 0.2, 0.4, 1.0])
def test_min_k_is_the_mean_of_the_least_likely_tokens(share, seed):
    logp, p, offsets = table(seed)
    mean, second = (p * np.log(p)).sum(1), (p * np.log(p) ** 2).sum(1)
    standard = (logp - mean) / np.sqrt(np.maximum(second - mean**2, 1e-6))
    for values, got in (
        (logp, metrics.mia_min_k(logp, offsets, share=share)),
        (standard, metrics.mia_min_k_plus_plus(logp, mean, second, offsets, share=share)),
    ):
        want = []
        for each in examples(values, offsets):
            count = max(1, int(share * len(each)))
            want.append(sum(sorted(each)[:count]) / count)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_min_k_plus_plus_standardises_by_the_models_own_distribution():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(9), 4)
    logs = np.log(p)
    mean, second = (p * logs).sum(1), (p * logs**2).sum(1)
    centred = [np.average((logs[i] - mean[i]) ** 2, weights=p[i]) for i in range(4)]
    deviations = np.sqrt(centred)
    got = metrics.mia_min_k_plus_plus(logs[:, 0], mean, second, np.arange(5), share=1.0)
    np.testing.assert_allclose(got, (logs[:, 0] - mean) / deviations, rtol=1e-10)
    certain = metrics.mia_min_k_plus_plus(np.zeros(1), np.zeros(1), np.zeros(1), np.arange(2))
    assert certain == [0.0]  # one token has all the probability: nothing to standardise by


def test_the_end_of_a_text_is_left_out_where_it_is_one_and_not_alone():
    logp, offsets = np.array([-1.0, -9.0, -1.0, -9.0, -7.0]), np.array([0, 2, 4, 5])
    np.testing.assert_allclose(metrics.mia_min_k(logp, offsets, ended=True), [-1, -1, -7])
    some = metrics.mia_min_k(logp, offsets, ended=np.array([True, False, False]))
    np.testing.assert_allclose(some, [-1, -9, -7])


def test_loss_zlib_reference_and_gradient_norm_point_to_members():
    nll, texts = np.array([1.0, 2.0]), ["a" * 80, "q7#xK2!vPz"]
    sizes = [len(zlib.compress(text.encode("utf-8"))) for text in texts]
    np.testing.assert_allclose(metrics.mia_loss(nll), [-1, -2])
    np.testing.assert_allclose(metrics.mia_zlib(nll, texts), [-1 / sizes[0], -2 / sizes[1]])
    np.testing.assert_allclose(metrics.mia_reference(nll, np.array([1.5, 1.0])), [0.5, -1])
    np.testing.assert_allclose(metrics.mia_gradient_norm(np.array([3.0, 0.5])), [-3, -0.5])


@settings(max_examples=60, deadline=None)
@seeds
def test_auc_and_rates_are_scikit_learns_with_ties(seed):
    members, others = scores(seed)
    labels, values = np.repeat([1, 0], [len(members), len(others)]), np.append(members, others)
    assert metrics.roc_auc(members, others) == pytest.approx(roc_auc_score(labels, values))
    false, true, _ = roc_curve(labels, values, drop_intermediate=False)
    for level in (0.0, 0.01, 0.1, 0.5, 1.0):
        want = true[false <= level].max()
        assert metrics.tpr_at_fpr(members, others, fpr=level) == pytest.approx(want)
    best = max(balanced_accuracy_score(labels, values >= at) for at in [*np.unique(values), np.inf])
    assert metrics.balanced_accuracy(members, others) == pytest.approx(best)
    at = float(np.median(values))
    want = balanced_accuracy_score(labels, values >= at)
    assert metrics.balanced_accuracy(members, others, threshold=at) == pytest.approx(want)


def test_judges_at_their_limits():
    low, high, tied = np.zeros(5), np.ones(4), np.full(6, 0.3)
    assert metrics.roc_auc(high, low) == 1 and metrics.roc_auc(low, high) == 0
    assert metrics.roc_auc(tied, tied[:2]) == 0.5
    assert metrics.tpr_at_fpr(high, low) == 1 and metrics.tpr_at_fpr(tied, tied) == 0
    assert metrics.balanced_accuracy(tied, tied) == 0.5
    assert metrics.balanced_accuracy(high, low) == 1
    assert metrics.roc_auc(high[:1], low[:1]) == 1


def test_auc_of_many_resamples_is_that_of_each():
    rng = np.random.default_rng(1)
    members, others = rng.integers(0, 5, (4, 7)) / 2, rng.integers(0, 5, (4, 9)) / 2
    each = [metrics.roc_auc(a, b) for a, b in zip(members, others, strict=True)]
    np.testing.assert_allclose(metrics.roc_auc(members, others, axis=-1), each)
    np.testing.assert_allclose(metrics.roc_auc(members.T, others.T, axis=0), each)


def test_the_interval_of_an_area_is_that_of_the_bootstrap():
    rng = np.random.default_rng(2)
    for members, others in (
        (rng.normal(size=30) + 0.7, rng.normal(size=21)),
        (rng.integers(0, 4, 40), rng.integers(1, 5, 25)),  # many ties
        (np.ones(4), np.zeros(4)),
    ):
        got = privacy.auc_interval(members, others, seed=3)
        want = metrics.bootstrap(members, others, statistic=metrics.roc_auc, seed=3)
        assert got.method == want.method
        ours, theirs = ((each.value, each.low, each.high) for each in (got, want))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_privleak_is_zero_for_the_oracle_and_negative_where_members_show():
    assert metrics.privleak(0.6, 0.6) == 0
    assert metrics.privleak(1.0, 0.5) == -100 and metrics.privleak(0.0) == 100
    assert metrics.privleak(0.9, 0.6) == pytest.approx(100 * (0.1 - 0.4) / 0.4)
    with pytest.raises(UserError, match="oracle's AUC is 1"):
        metrics.privleak(0.5, 1.0)
    with pytest.raises(UserError, match=r"must be in \[0, 1\], is 1.5"):
        metrics.privleak(1.5, 0.5)


def test_what_is_broken_is_refused():
    with pytest.raises(UserError, match="AUC: value 1 is nan"):
        metrics.roc_auc(np.array([0.0, np.nan]), np.ones(2))
    with pytest.raises(UserError, match="AUC: there is nothing"):
        metrics.roc_auc(np.zeros(0), np.ones(2))
    with pytest.raises(UserError, match=r"share must be in \(0, 1\], is 0"):
        metrics.mia_min_k(np.ones(1), np.arange(2), share=0)
    with pytest.raises(UserError, match="example 1 has no target"):
        metrics.mia_min_k(np.ones(2), np.array([0, 2, 2]))
    with pytest.raises(UserError, match="differ in length: 2, 1"):
        metrics.mia_zlib(np.ones(2), ["one"])
    with pytest.raises(UserError, match="differ in length"):
        metrics.mia_min_k_plus_plus(np.ones(2), np.ones(2), np.ones(1), np.array([0, 2]))
    with pytest.raises(UserError, match="fpr must be in"):
        metrics.tpr_at_fpr(np.ones(1), np.ones(1), fpr=2)
