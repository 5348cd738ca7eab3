"""Metrics on plain arrays, against definitions written out in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics


def lists(seed, count=None):
    """Per-example arrays of log-probabilities and hits, and the flat form metrics take."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, count or rng.integers(1, 12))
    logp = [-rng.exponential(2.0, n).astype(np.float32) for n in lengths]
    hits = [(rng.random(n) < 0.6).astype(np.float32) for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return logp, hits, offsets


seeds = given(st.integers(0, 2**31))


@settings(max_examples=30, deadline=None)
@seeds
def test_mean_nll_probability_and_perplexity(seed):
    logp, _, offsets = lists(seed)
    flat = np.concatenate(logp)
    nll = metrics.mean_nll(flat, offsets)
    expected = [-np.mean(each.astype(np.float64)) for each in logp]
    np.testing.assert_allclose(nll, expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.probability(nll), np.exp(-np.asarray(expected)), rtol=1e-12)
    assert ((metrics.probability(nll) >= 0) & (metrics.probability(nll) <= 1)).all()
    want = np.exp(-np.mean(flat.astype(np.float64)))
    np.testing.assert_allclose(metrics.perplexity(flat), want, rtol=1e-12)
    assert metrics.perplexity(flat) >= 1


def test_probability_is_the_geometric_mean_of_token_probabilities():
    p = np.array([0.5, 0.25, 0.1])
    nll = metrics.mean_nll(np.log(p), np.array([0, 2, 3]))
    np.testing.assert_allclose(metrics.probability(nll), [np.sqrt(0.125), 0.1])


@settings(max_examples=30, deadline=None)
@seeds
def test_truth_ratio_and_its_aggregates(seed):
    rng = np.random.default_rng(seed)
    correct, wrong = rng.exponential(1.5, 7), rng.exponential(1.5, (7, 5))
    ratios = metrics.truth_ratio(correct, wrong.mean(1))
    geometric = np.prod(np.exp(-wrong), axis=1) ** (1 / 5)
    np.testing.assert_allclose(ratios, geometric / np.exp(-correct), rtol=1e-12)
    closer = np.mean([min(r, 1 / r) for r in ratios])
    np.testing.assert_allclose(metrics.closer_to_one(ratios), closer, rtol=1e-12)
    better = np.mean([max(0.0, 1 - r) for r in ratios])
    np.testing.assert_allclose(metrics.true_better(ratios), better, rtol=1e-12, atol=1e-12)
    share = np.mean(np.exp(-correct) / (np.exp(-correct) + geometric))
    np.testing.assert_allclose(metrics.probability_mean(correct, wrong.mean(1)), share, rtol=1e-12)
    for value in (closer, better, share):
        assert 0 <= value <= 1


@settings(max_examples=20, deadline=None)
@seeds
def test_the_papers_truth_ratio_averages_probabilities(seed):
    rng = np.random.default_rng(seed)
    correct = rng.exponential(1.5, 5)
    wrong = [rng.exponential(1.5, rng.integers(1, 6)) for _ in correct]
    owner = np.repeat(np.arange(5), [len(each) for each in wrong])
    shuffled = rng.permutation(len(owner))
    got = metrics.paper_truth_ratio(correct, np.concatenate(wrong)[shuffled], owner[shuffled])
    want = [np.exp(-w).mean() / np.exp(-c) for c, w in zip(correct, wrong, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    geometric = metrics.truth_ratio(correct, np.array([w.mean() for w in wrong]))
    assert (got >= geometric * (1 - 1e-12)).all()
    far = metrics.paper_truth_ratio(np.array([5e3]), np.array([4e3, 4001.0]), np.zeros(2, int))
    assert np.isfinite(far).all()
    with pytest.raises(UserError, match="example 1 has no wrong answer"):
        metrics.paper_truth_ratio(correct[:2], np.ones(3), np.zeros(3, int))


@settings(max_examples=20, deadline=None)
@seeds
def test_whole_answers_and_single_perplexities(seed):
    logp, _, offsets = lists(seed)
    flat = np.concatenate(logp).astype(np.float64)
    whole = [np.prod(np.exp(each.astype(np.float64))) for each in logp]
    np.testing.assert_allclose(metrics.sequence_probability(flat, offsets), whole, rtol=1e-12)
    each = [np.exp(-each.astype(np.float64).mean()) for each in logp]
    np.testing.assert_allclose(metrics.perplexities(metrics.mean_nll(flat, offsets)), each)
    assert metrics.perplexities(np.array([1e4]))[0] == np.inf


def test_truth_ratio_at_its_limits():
    assert metrics.closer_to_one(np.ones(3)) == pytest.approx(1)
    assert metrics.true_better(np.ones(3)) == 0
    assert metrics.closer_to_one(np.zeros(2)) == 0
    assert metrics.true_better(np.zeros(2)) == 1
    assert metrics.closer_to_one(np.array([1e300])) == pytest.approx(0)
    assert np.isfinite(metrics.truth_ratio(np.array([800.0]), np.array([0.0]))).all()


@settings(max_examples=20, deadline=None)
@seeds
def test_option_probability(seed):
    rng = np.random.default_rng(seed)
    right, wrong = rng.random(6), rng.random((6, 3))
    got = metrics.option_probability(right, wrong.sum(1))
    np.testing.assert_allclose(got, right / (right + wrong.sum(1)), rtol=1e-12)
    assert metrics.option_probability(np.zeros(1), np.zeros(1)) == 0


@settings(max_examples=40, deadline=None)
@seeds
def test_memorisation_leaves_out_the_last_target(seed):
    _, hits, offsets = lists(seed)
    flat = np.concatenate(hits)
    exact = [each[:-1].mean() if len(each) > 1 else 0.0 for each in hits]
    np.testing.assert_allclose(metrics.exact_memorization(flat, offsets), exact)
    strengths, peers = [], []
    for each in hits:
        body = each[:-1]
        n = len(body)
        k = next((k for k in range(n) if body[k:].all()), n)
        strengths.append(1 - k / n if n else 0.0)
        peers.append(1 - min(k, n - 1) / n if n else 0.0)
    np.testing.assert_allclose(metrics.extraction_strength(flat, offsets), strengths)
    compat = metrics.extraction_strength(flat, offsets, peer_compat=True)
    np.testing.assert_allclose(compat, peers)


def test_a_text_that_was_cut_short_keeps_its_last_token():
    hits, offsets = np.array([1.0, 0, 1, 1, 0]), np.array([0, 3, 5])
    ended = np.array([False, True])
    np.testing.assert_allclose(
        metrics.exact_memorization(hits, offsets, ended=ended), [2 / 3, 1], rtol=1e-12
    )
    strength = metrics.extraction_strength(hits, offsets, ended=ended)
    np.testing.assert_allclose(strength, [1 / 3, 1], rtol=1e-12)
    np.testing.assert_allclose(metrics.exact_memorization(hits, offsets), [0.5, 1])


def test_memorisation_at_its_limits():
    offsets = np.array([0, 5])
    for value in (0.0, 1.0):
        hits = np.full(5, value)
        assert metrics.exact_memorization(hits, offsets) == value
        assert metrics.extraction_strength(hits, offsets) == value
    assert metrics.extraction_strength(np.zeros(5), offsets, peer_compat=True) == 0.25
    assert metrics.extraction_strength(np.ones(1), np.array([0, 1])) == 0


@settings(max_examples=20, deadline=None)
@seeds
def test_forget_quality_is_the_two_sample_test(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.random(12), rng.random(9) + 0.2
    expected = stats.ks_2samp(ours, theirs).pvalue
    assert metrics.forget_quality(ours, theirs) == pytest.approx(expected, rel=1e-12)
    assert metrics.forget_quality(ours, ours) == pytest.approx(1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=9))
def test_harmonic_mean(values):
    parts = {f"part{i}": value for i, value in enumerate(values)}
    got = metrics.harmonic_mean(parts)
    assert got == pytest.approx(stats.hmean(values), rel=1e-10)
    assert min(values) - 1e-12 <= got <= max(values) + 1e-12
    assert metrics.harmonic_mean({**parts, "zero": 0.0}) == 0


def test_what_is_broken_is_named_with_its_place():
    with pytest.raises(UserError, match="empty set"):
        metrics.probability(np.zeros(0))
    with pytest.raises(UserError, match="value 2 is nan"):
        metrics.closer_to_one(np.array([0.5, 0.5, np.nan]))
    with pytest.raises(UserError, match="value 1 is -inf"):
        metrics.mean_nll(np.array([-1.0, -np.inf]), np.array([0, 2]))
    with pytest.raises(UserError, match="example 1 has no target"):
        metrics.mean_nll(np.array([-1.0]), np.array([0, 1, 1]))
    with pytest.raises(UserError, match="example 0 has no target"):
        metrics.mean_nll(np.array([-1.0]), np.array([0]))
    with pytest.raises(UserError, match="differ in length: 2, 3"):
        metrics.truth_ratio(np.ones(2), np.ones(3))
    with pytest.raises(UserError, match="offsets must rise from 0 to the 3"):
        metrics.exact_memorization(np.ones(3), np.array([0, 2]))
    with pytest.raises(UserError, match="offsets must rise"):
        metrics.extraction_strength(np.ones(3), np.array([0]))
    with pytest.raises(UserError, match="value 0 is nan"):
        metrics.exact_memorization(np.array([np.nan, 1.0]), np.array([0, 2]))
    with pytest.raises(UserError, match="below 0"):
        metrics.harmonic_mean({"a": -0.1})
