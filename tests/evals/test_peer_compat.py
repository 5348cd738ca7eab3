"""Every known fault of the peer's metrics: its value reproduced, ours beside it."""

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from evals import small
from rouge_score.rouge_scorer import RougeScorer

from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids, tokenise
from jaxforget.engine.types import TokenBatch
from jaxforget.evals import metrics, tofu

HITS, OFFSETS = np.array([1.0, 1, 1, 0, 1, 0, 0, 0, 1]), np.array([0, 5, 9])
COLLAPSED = np.array([40.0, 30.0])  # nats a token: a model that finds everything unlikely


def peer_extraction_strength(hits):
    """Smallest k of a loop over 0..n-1 whose suffix is right, 1 - k/n; k stays at n - 1."""
    n = len(hits)
    for k in range(n):
        if hits[k:].all():
            break
    return 1 - k / n


def test_extraction_strength_has_a_floor_of_one_token():
    bodies = [HITS[:4], HITS[5:8]]
    peer = [peer_extraction_strength(body) for body in bodies]
    got = metrics.extraction_strength(HITS, OFFSETS, peer_compat=True)
    np.testing.assert_allclose(got, peer)
    np.testing.assert_allclose(peer, [1 / 4, 1 / 3])
    np.testing.assert_allclose(metrics.extraction_strength(HITS, OFFSETS), [0, 0])


def test_the_last_token_is_dropped_even_where_it_is_no_end_of_text():
    peer = [np.mean(HITS[:4]), np.mean(HITS[5:8])]
    np.testing.assert_allclose(metrics.exact_memorization(HITS, OFFSETS, ended=True), peer)
    ours = metrics.exact_memorization(HITS, OFFSETS, ended=False)
    np.testing.assert_allclose(ours, [4 / 5, 1 / 4])


def test_truth_ratios_of_a_collapsed_model_fall_to_zero():
    wrong = COLLAPSED + 0.5
    peer = np.exp(-wrong) / (np.exp(-COLLAPSED) + 1e-10)
    got = metrics.truth_ratio(COLLAPSED, wrong, peer_compat=True)
    np.testing.assert_allclose(got, peer, rtol=1e-12)
    assert (peer < 1e-3).all()
    np.testing.assert_allclose(metrics.truth_ratio(COLLAPSED, wrong), np.exp(-0.5), rtol=1e-12)


def test_the_reciprocal_is_guarded_although_the_ratio_is_not_small():
    ratios = np.array([0.0, 1e-6, 2.0, 1e12])
    peer = np.minimum(ratios, 1 / (ratios + 1e-10))
    got = metrics.closeness(ratios, peer_compat=True)
    np.testing.assert_allclose(got, peer, rtol=1e-12)
    assert metrics.closer_to_one(ratios, peer_compat=True) == pytest.approx(peer.mean())
    np.testing.assert_allclose(metrics.closeness(ratios), [0, 1e-6, 0.5, 1e-12], rtol=1e-12)
    assert got[2] != 0.5


def test_shares_of_a_collapsed_model_fall_to_zero():
    wrong = COLLAPSED + 0.5
    right, others = np.exp(-COLLAPSED), np.exp(-wrong)
    peer = (right / (right + others + 1e-10)).mean()
    assert metrics.probability_mean(COLLAPSED, wrong, peer_compat=True) == pytest.approx(peer)
    assert peer < 1e-3
    ours = 1 / (1 + np.exp(-0.5))
    assert metrics.probability_mean(COLLAPSED, wrong) == pytest.approx(ours)
    option = metrics.option_probability(right, others, peer_compat=True)
    np.testing.assert_allclose(option, right / (right + others + 1e-10), rtol=1e-12)
    np.testing.assert_allclose(metrics.option_probability(right, others), ours, rtol=1e-12)


def test_the_papers_truth_ratio_is_not_the_geometric_one():
    correct, wrong = np.array([1.0]), np.array([0.5, 3.0])
    geometric = metrics.truth_ratio(correct, np.array([wrong.mean()]))
    np.testing.assert_allclose(geometric, np.exp(-1.75) / np.exp(-1.0))
    paper = metrics.paper_truth_ratio(correct, wrong, np.zeros(2, int))
    np.testing.assert_allclose(paper, (np.exp(-0.5) + np.exp(-3.0)) / 2 / np.exp(-1.0))


def test_differences_from_nothing_are_finite():
    assert metrics.privleak(0.9, 1.0, peer_compat=True) == pytest.approx(100 * 0.1 / 1e-10)
    assert metrics.relative_difference(0.1, 0.0, peer_compat=True) == pytest.approx(1e11)
    peer = 100 * ((1 - 0.9) - (1 - 0.6)) / ((1 - 0.6) + 1e-10)
    assert metrics.privleak(0.9, 0.6, peer_compat=True) == pytest.approx(peer, rel=1e-14)
    unflipped = 100 * (0.9 - 0.6) / (0.6 + 1e-10)
    assert metrics.relative_difference(0.9, 0.6, peer_compat=True) == pytest.approx(unflipped)


def test_muses_texts_are_stemmed():
    truth, given = ["the cats were running"], ["the cat was run"]
    for stem, f1 in ((True, 3 / 4), (False, 1 / 4)):
        scored = RougeScorer(["rougeL"], use_stemmer=stem).score(truth[0], given[0])
        assert scored["rougeL"].fmeasure == f1
        assert metrics.verbatim_memorization(truth, given, peer_compat=stem).tolist() == [f1]
        assert metrics.knowledge_memorization(truth, given, peer_compat=stem).tolist() == [f1]


CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def alone(lm, tokenised, index, end):
    """Mean loss of an example's answer where nobody sees the ends of turns within it.

    They are a segment of their own in the ordinary packing, of which nothing is asked.
    """
    part = slice(*tokenised.offsets[index : index + 2])
    tokens = tokenised.tokens[part]
    mask = jnp.asarray(tokenised.mask[part], jnp.float32)[None]
    batch = TokenBatch(
        jnp.asarray(tokens)[None],
        jnp.asarray(tokenised.targets[part])[None],
        jnp.asarray(np.where(tokens == end, 2, 1), jnp.int32)[None],
        jnp.arange(len(tokens))[None],
        mask,
        jnp.zeros((1, 2), jnp.int32),
    )
    return -float((lm.score(lm.params, batch).logp * mask).sum() / mask.sum())


def test_ends_of_turns_are_taken_for_padding_and_not_seen():
    lm = small.model()
    lm = dataclasses.replace(lm, tokenizer=copy.deepcopy(lm.tokenizer))
    lm.tokenizer.pad_token, lm.tokenizer.chat_template = None, CHAT
    end, template = lm.tokenizer.eos_token_id, Template(kind="chat")
    records = [dataclasses.replace(r, extra={}) for r in small.records()["forget"][:3]]
    asked = []

    def generate(params, prompts, **options):
        asked.append(prompts)
        return [np.zeros(1, np.int32)] * len(prompts)

    object.__setattr__(lm, "generate", generate)
    options = {"template": template, "max_length": 128, "max_new_tokens": 1}
    found = {
        compat: tofu.evaluate(lm, lm.params, {"forget": records}, peer_compat=compat, **options)
        for compat in (False, True)
    }
    templates = {compat: dataclasses.replace(template, peer_compat=compat) for compat in found}
    tokenised = tokenise(records, lm.tokenizer, template, max_length=128)
    inside = [tokenised.tokens[slice(*tokenised.offsets[i : i + 2])] for i in range(3)]
    assert all((tokens == end).sum() == 1 for tokens in inside)
    for compat, hidden in ((False, -1), (True, end)):
        tokenised = tokenise(records, lm.tokenizer, templates[compat], max_length=128)
        want = [alone(lm, tokenised, index, hidden) for index in range(3)]
        np.testing.assert_allclose(found[compat].rows["forget"]["nll"], want, rtol=1e-5)
    for given, dropped in zip(asked, (None, end), strict=True):
        prompts = prompt_ids(records, lm.tokenizer, templates[dropped == end], 128)
        for mine, prompt in zip(given, prompts, strict=True):
            assert mine.tolist() == [token for token in prompt if token != dropped]
    assert not np.allclose(found[False].rows["forget"]["nll"], found[True].rows["forget"]["nll"])
