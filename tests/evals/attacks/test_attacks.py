"""Asking, relearning, quantisation and weight changes on a tiny model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evals import small
from evals.attacks.world import data, knowing
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.engine.errors import UserError
from jaxforget.engine.train import CompiledStep
from jaxforget.evals.attacks import ATTACKS, chosen, weight_changes
from jaxforget.evals.attacks.catalogue import missing
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.attacks.plain import Ask, ask
from jaxforget.evals.attacks.quantise import Quantise, quantise, quantised, rounded
from jaxforget.evals.attacks.relearn import Relearn, relearn


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_asking_finds_what_was_learnt_and_only_that():
    found, fresh = ask(knowing(), data(), Ask()), ask(small.model(), data(), Ask())
    assert found.known > 0.9 and found.scores["memorised"] > 0.9 and found.scores["rouge"] > 0.4
    assert fresh.known < 0.1
    assert found.examples[0].keys() == {"row", "prompt", "truth", "answer"}
    np.testing.assert_allclose(found.known, found.each.mean())


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_relearning_brings_back_what_is_trained(rank):
    lm = small.model()
    before = jax.tree.map(np.array, lm.params)
    choice = Relearn(steps=20, rank=rank, learning_rates=(1e-5, 1e-2), batch_size=6)
    found = relearn(lm, data(), choice)
    same(before, lm.params)
    assert found.scores["learning_rate"] == 1e-2  # the one that recovers most
    assert found.scores["prob_after"] > found.scores["prob_before"] + 0.05
    steps, means = zip(*found.curves["forget_prob"], strict=True)
    assert steps == (0, 1, 2, 5, 10, 20)
    untouched = known(lm, lm.params, tokens_of(lm, data().forget, data()), data())
    np.testing.assert_allclose(means[0], untouched.prob.mean(), rtol=1e-5)  # no step, no change
    np.testing.assert_allclose(found.known, np.trapezoid(means, steps) / 20, rtol=1e-6)


def test_relearning_is_the_same_twice_and_half_measures_the_other_half():
    choice = Relearn(text="half", steps=3, learning_rates=(1e-3,), batch_size=2)
    found = [relearn(small.model(), data(), choice) for _ in range(2)]
    np.testing.assert_array_equal(found[0].each, found[1].each)
    assert len(found[0].each) == len(data().forget) // 2
    with pytest.raises(UserError, match="at least two records"):
        relearn(small.model(), data(forget=data().forget[:1]), choice)


def test_rates_and_models_share_a_program(monkeypatch):
    compiled, program = [], CompiledStep.program
    monkeypatch.setattr(CompiledStep, "program", lambda *a: compiled.append(1) or program(*a))
    choice = Relearn(steps=2, rank=3, learning_rates=(1e-4, 1e-3), batch_size=3)
    found = [relearn(lm, data(), choice) for lm in (knowing(), small.model())]
    assert len(compiled) == 1 and found[0].known > found[1].known
    relearn(small.model(), data(), dataclasses.replace(choice, rank=2))
    assert len(compiled) == 2


def test_training_that_diverges_is_left_out(caplog):
    choice = Relearn(steps=3, rank=0, learning_rates=(1e-3, 1e30))
    found = relearn(small.model(), data(), choice)
    assert found.scores["learning_rate"] == 1e-3 and "left out" in caplog.text
    with pytest.raises(UserError, match="diverged"):
        relearn(small.model(), data(), dataclasses.replace(choice, learning_rates=(1e30,)))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 100), st.sampled_from([2, 4, 8]), st.sampled_from([0, 1, 3, 16]))
def test_rounding_is_to_the_nearest_of_its_scale(seed, bits, group):
    weight = np.random.default_rng(seed).normal(size=(7, 3)).astype(np.float32)
    found = np.asarray(rounded(jnp.asarray(weight), bits=bits, group=group), np.float64)
    size, most = group or 7, 2 ** (bits - 1) - 1
    for start in range(0, 7, size):
        block = weight[start : start + size].astype(np.float64)
        mine, scale = found[start : start + size], np.abs(block).max(axis=0) / most
        np.testing.assert_allclose(mine / scale, np.round(mine / scale), atol=1e-4)
        assert (np.abs(mine - block) <= scale / 2 + 1e-5).all()


def test_rounding_keeps_zeros_and_what_is_already_rounded():
    assert not np.asarray(rounded(jnp.zeros((4, 3)), bits=4)).any()
    once = rounded(jax.random.normal(jax.random.key(0), (8, 4)), bits=4)
    np.testing.assert_allclose(rounded(once, bits=4), once, atol=1e-6)


def test_only_matrices_of_layers_are_rounded_and_more_bits_harm_less():
    lm = knowing()
    rough = quantised(lm.params, bits=4)
    same(rough["embed"], lm.params["embed"])
    same(rough["layers"]["attn_norm"], lm.params["layers"]["attn_norm"])
    found = [quantise(lm, data(), Quantise(bits=bits)) for bits in (8, 4)]
    plain = found[0].scores["prob_before"]
    assert abs(found[0].known - plain) < 0.02
    assert abs(found[1].known - plain) > abs(found[0].known - plain)


def test_weight_changes_are_norms_of_the_difference():
    before = {"a": {"w": jnp.arange(6.0).reshape(2, 3)}, "b": {"w": jnp.ones(4)}}
    after = {"a": {"w": before["a"]["w"].at[0, 1].add(3.0)}, "b": {"w": jnp.ones(4)}}
    found = weight_changes(before, after)
    np.testing.assert_allclose(found["a/w"]["distance"], 3.0)
    np.testing.assert_allclose(found["a/w"]["moved"], 1 / 6)
    np.testing.assert_allclose(found["all"]["relative"], 3 / np.sqrt(55 + 4))
    assert found["b/w"] == {"distance": 0.0, "relative": 0.0, "moved": 0.0, "cosine": 1.0}
    with pytest.raises(UserError, match="different architectures"):
        weight_changes(before, {"a": before["a"]})


def test_attacks_are_chosen_by_name_and_setting():
    found = chosen(["ask", {"name": "relearn", "text": "half"}, {"name": "quantise"}])
    assert [label for label, _, _ in found] == ["ask", "relearn(text=half)", "quantise"]
    assert missing(ATTACKS["relearn"], Relearn(text="unrelated"), data(unrelated=())) == [
        "unrelated"
    ]
    assert not missing(ATTACKS["relearn"], Relearn(text="half"), data(retain=()))


@pytest.mark.parametrize(
    "choice, message",
    [
        ("relern", "no attack 'relern'. Did you mean 'relearn'"),
        ({"name": "relearn", "step": 3}, "attacks.0.step: no such setting"),
        ({"name": "relearn", "steps": 0}, "attacks.0.steps: .*greater than or equal to 1"),
        ({"steps": 3}, "must be a name or a mapping with a name"),
    ],
)
def test_a_wrong_choice_is_refused(choice, message):
    with pytest.raises(UserError, match=message):
        chosen([choice])


def test_the_same_attack_twice_is_refused():
    with pytest.raises(UserError, match="ask is there already"):
        chosen(["ask", "ask"])
