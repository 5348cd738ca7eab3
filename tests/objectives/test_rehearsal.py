"""Distillation on new and on stored examples against float64, example by example."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from objectives import toy_lm as toy
from objectives.cases import PARAMS, START, all_logits, close

from jaxforget.engine.errors import UserError
from jaxforget.objectives import assemble
from jaxforget.objectives.rehearsal import distillation_part, logit_distance_part, top_logits
from jaxforget.objectives.retain import nll_part

SOME = toy.examples(1, 7)
BATCH = toy.pack(SOME, 4, 3)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def lwf64(p, temperature):
    old = softmax(all_logits(toy.float64(START), SOME) / temperature)
    new = softmax(all_logits(p, SOME) / temperature)
    return temperature**2 * (old * (np.log(old) - np.log(new))).sum(-1).mean()


def der64(p, kept, count=3):
    old, new = all_logits(toy.float64(START), SOME), all_logits(p, SOME)
    if kept == "target":
        a, b = (np.concatenate(toy.token_logps(q, SOME)) for q in (p, toy.float64(START)))
        return ((a - b) ** 2).mean()
    if kept == "top":
        words = np.argsort(-old, axis=-1)[:, :count]
        old, new = (np.take_along_axis(z, words, axis=-1) for z in (old, new))
    return ((new - old) ** 2).mean()


def check(part, expected, reference, params=PARAMS):
    spec = assemble({"term": part})

    def term(p):
        return spec.objective(toy.score, p, {"train": BATCH}, {"train": reference})[0]["term"]

    value, gradient = jax.jit(jax.value_and_grad(term))(params)
    np.testing.assert_allclose(value, expected(toy.float64(params)), rtol=2e-5, atol=1e-6)
    close(gradient, toy.differences(expected, toy.float64(params)), 3e-4)
    return value, gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
def test_lwf_is_the_softened_divergence_times_the_squared_temperature(temperature):
    part = distillation_part("train", temperature)
    check(part, lambda p: lwf64(p, temperature), toy.reference(START, BATCH))


@pytest.mark.parametrize("per", ["token", "example"])
def test_the_loss_of_a_task_weighs_tokens_or_examples_alike(per):
    def expected(p):
        parts = toy.token_logps(p, SOME)
        whole = np.concatenate(parts)
        return -(whole.mean() if per == "token" else np.mean([part.mean() for part in parts]))

    check(nll_part("train", per), expected, toy.reference(START, BATCH))


def test_lwf_pulls_nowhere_where_the_models_agree():
    value, gradient = check(distillation_part("train"), lambda p: 0.0, toy.reference(PARAMS, BATCH))
    assert abs(float(value)) < 1e-6


def stored(count=3):
    reference = toy.reference(START, BATCH)
    words, logits = top_logits(toy.score(START, BATCH), count)
    return replace(reference, words=words, logits=logits)


@pytest.mark.parametrize("kept", ["hidden", "top", "target"])
def test_der_is_the_mean_squared_distance_to_what_was_stored(kept):
    part = logit_distance_part("train", kept)
    check(part, lambda p: der64(p, kept), stored())
    fields = {"hidden": "hidden", "top": "top", "target": "logp"}
    assert part.reference == {"train": frozenset({fields[kept]})}


def test_all_words_stored_are_the_whole_distribution():
    whole = check(
        logit_distance_part("train", "top"), lambda p: der64(p, "hidden"), stored(toy.VOCAB)
    )
    close(whole, check(logit_distance_part("train"), lambda p: der64(p, "hidden"), stored()), 1e-5)


def test_top_logits_are_the_largest_and_name_their_words():
    words, logits = top_logits(toy.score(START, BATCH), 4)
    scores = toy.score(START, BATCH)
    z = np.asarray(scores.hidden @ START["head"].T)
    np.testing.assert_allclose(np.take_along_axis(z, np.asarray(words), -1), logits, rtol=1e-5)
    np.testing.assert_allclose(-np.sort(-z, axis=-1)[..., :4], logits, rtol=1e-5)


@pytest.mark.parametrize(
    "fault, make",
    [
        ("temperature", lambda: distillation_part("train", 0.0)),
        (
            "nothing is kept as 'topp'. Did you mean 'top'",
            lambda: logit_distance_part("train", "topp"),
        ),
        ("count", lambda: top_logits(toy.score(START, BATCH), 8)),
        (
            "no top logits",
            lambda: check(
                logit_distance_part("train", "top"), lambda p: 0.0, toy.reference(START, BATCH)
            ),
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(fault, make):
    with pytest.raises(UserError, match=fault):
        make()
