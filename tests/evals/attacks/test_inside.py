"""Attacks that look inside: logit lens, probes, steering."""

import dataclasses

import numpy as np
import pytest
from evals import small
from evals.attacks.world import data, knowing

from jaxforget.engine.tree import flatten
from jaxforget.evals.attacks import ATTACKS, steering
from jaxforget.evals.attacks.catalogue import missing
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.attacks.layers import by_example, one_label
from jaxforget.evals.attacks.logit_lens import LogitLens, logit_lens
from jaxforget.evals.attacks.probe import Probe, _right, probe, wrong_answers
from jaxforget.evals.attacks.steering import Steering, steer, steered
from jaxforget.evals.teacher_forced import score_set
from jaxforget.models.lens import layer_states


def test_the_last_layer_of_the_lens_is_the_model_and_known_is_the_best_layer():
    lm, audited = knowing(), data(batch_size=2)
    found = logit_lens(lm, audited, LogitLens())
    plain = known(lm, lm.params, tokens_of(lm, audited.forget, audited), audited).prob
    curve = dict(found.curves["prob"])
    np.testing.assert_allclose([curve[1.0], found.scores["prob_last"]], plain.mean(), rtol=1e-4)
    assert (found.each >= plain - 1e-6).all() and curve.keys() == {0.0, 1.0}
    assert found.scores["layer"] == max(curve, key=curve.get)


@pytest.mark.parametrize("which", [0, -1])
def test_one_label_keeps_an_end_of_every_answer(which):
    tokenised = small.tokens(data().forget)
    found = one_label(tokenised, which)
    assert (found.label_counts == 1).all() and (found.mask <= tokenised.mask).all()
    for index in range(len(tokenised)):
        part = slice(*tokenised.offsets[index : index + 2])
        assert found.mask[part].argmax() == np.flatnonzero(tokenised.mask[part])[which]


def test_states_by_example_are_those_of_the_scoring_pass():
    lm, audited = small.model(), data(batch_size=2)
    tokenised = one_label(tokens_of(lm, audited.forget, audited), -1)
    found = by_example(layer_states, lm, lm.params, tokenised, audited)
    for layer in range(2):
        table = score_set(lm.score, lm.params, tokenised, residual=layer)
        np.testing.assert_allclose(found[:, layer], table.residual, atol=2e-5)


def test_a_probe_finds_what_is_there_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    noise, truth = rng.normal(size=(400, 5)), np.repeat([1, 0], 200)
    assert abs(_right(noise, Probe()).mean() - 0.5) < 0.1
    assert _right(noise + 4 * truth[:, None], Probe()).mean() > 0.95


def test_a_probe_never_sees_its_own_record():
    # each record's two states are the same but for the sign of a direction of its own
    states = np.concatenate([np.eye(40), -np.eye(40)])
    assert _right(states, Probe()).mean() <= 0.5


def test_probes_are_cross_validated_on_every_layer():
    audited = data()
    found = probe(knowing(), audited, Probe(folds=3))
    layers, accuracy = zip(*found.curves["accuracy"], strict=True)
    assert layers == (0, 1) and max(accuracy) == found.scores["accuracy"]
    np.testing.assert_allclose(found.known, max(0, 2 * found.scores["accuracy"] - 1))
    np.testing.assert_allclose(found.each.mean(), 2 * found.scores["accuracy"] - 1)
    assert found.scores["head"] == 1.0  # it knows every answer
    assert len(found.each) == len(audited.forget)


def test_wrong_answers_are_wrong_and_of_the_same_question():
    bare = [dataclasses.replace(record, extra={}) for record in data().forget]
    for audited in (data(), data(forget=bare)):
        for record, wrong in zip(audited.forget, wrong_answers(audited), strict=True):
            assert wrong.prompt == record.prompt and wrong.answer != record.answer
    same = [dataclasses.replace(record, answer="Yes.") for record in bare]
    assert "different answers" in missing(ATTACKS["probe"], Probe(), data(forget=same))[0]


@pytest.mark.parametrize("norm_behind", [False, True])
def test_a_steered_layer_gives_its_state_and_the_vector(norm_behind):
    lm = small.model()
    if norm_behind:
        scale = lm.params["layers"]["attn_norm"]["scale"]
        layers = {**lm.params["layers"], "mlp_out_norm": {"scale": scale}}
        lm = dataclasses.replace(lm, params={**lm.params, "layers": layers})
    by = np.random.default_rng(0).normal(size=32).astype(np.float32)
    pushed = steered(lm.params, 0, by)
    assert len(flatten(pushed).keys() - flatten(lm.params).keys()) == 1
    tokenised = tokens_of(lm, data().forget, data())
    before, after = (
        by_example(layer_states, lm, params, tokenised, data()) for params in (lm.params, pushed)
    )
    np.testing.assert_allclose(after[:, 0], before[:, 0] + by, atol=1e-5)
    assert np.abs(after[:, 1] - before[:, 1] - by).max() > 1e-3  # the next layer has read it
    twice = steered(pushed, 0, -by)
    np.testing.assert_allclose(
        by_example(layer_states, lm, twice, tokenised, data()), before, atol=1e-5
    )


@pytest.mark.parametrize("direction", ["retain", "answer"])
def test_steering_takes_the_best_of_its_grid(direction):
    lm, audited = small.model(), data()
    choice = Steering(direction=direction, depths=(0.5, 1.0), strengths=(-1.0, 1.0))
    found = steer(lm, audited, choice)
    assert found.curves.keys() == {"prob_layer_0", "prob_layer_1"}
    points = [p for curve in found.curves.values() for _, p in curve]
    np.testing.assert_allclose(found.known, max(points))
    assert found.known >= found.scores["prob_before"]
    layer, strength = int(found.scores["layer"]), found.scores["strength"]
    by = strength * steering._directions(lm, audited, direction)[layer]
    again = known(
        lm, steered(lm.params, layer, by), tokens_of(lm, audited.forget, audited), audited
    )
    np.testing.assert_allclose(found.each, again.prob, rtol=1e-5)


def test_steering_finds_a_direction_that_was_subtracted():
    lm, audited = knowing(), data()
    by = steering._directions(lm, audited, "retain")[0]
    hidden = dataclasses.replace(lm, params=steered(lm.params, 0, -3 * by))
    found = steer(hidden, audited, Steering(depths=(0.5,), strengths=(1.0, 3.0)))
    assert found.scores["strength"] == 3.0 and found.known > found.scores["prob_before"] + 0.1
