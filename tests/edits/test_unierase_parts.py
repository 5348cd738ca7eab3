"""UniErase: its token, its search and its edit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evals import small
from hypothesis import given, settings
from hypothesis import strategies as st
from methods.small_runs import run

import jaxforget as jf
from jaxforget.data.pack import pack_all
from jaxforget.data.template import Template
from jaxforget.data.token_sets import token_questions, token_refusals
from jaxforget.edits.new_token import DOWN, Stage, perturbed, token_loss, train_row, with_row
from jaxforget.edits.steering import Search, questions, wanted_outputs
from jaxforget.edits.unierase import chosen_layers
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten
from jaxforget.models.vocabulary import with_tokens
from jaxforget.objectives.steering import shortened, steering_losses

pytest_plugins = ["methods.conftest"]


@pytest.fixture(scope="module")
def grown():
    lm, (token,) = with_tokens(small.model(), ["[UNL]"])
    return lm, token


def sets(lm, token):
    """(refusals, questions) of the six forget records, one example a row, as one batch each."""
    records = small.records()["forget"]
    refused = [dataclasses.replace(each, answer="I cannot say that.") for each in records]
    taught = token_refusals(refused, lm.tokenizer, [Template()], token, max_length=96)
    asked = token_questions(
        records, lm.tokenizer, Template(), token, neutral=" is a", max_length=96
    )
    return [pack_all(each, rows=6, length=128, max_segments=1)[0] for each in (taught, asked)]


def test_five_layers_from_an_eighth_of_the_depth():
    assert chosen_layers(None, 32) == (4, 5, 6, 7, 8)
    assert chosen_layers(None, 30) == (3, 4, 5, 6, 7)
    assert chosen_layers(None, 2) == (0, 1)
    assert chosen_layers([-1, 0], 4) == (0, 3)
    for wrong in ([4], [-5], [0, 0], []):
        with pytest.raises(UserError, match="method.layers"):
            chosen_layers(wrong, 4)


def test_the_share_of_parameters_that_is_edited_is_the_card_s():
    assert round(5 * 4096 * 14336 / 8.03e9, 4) == 0.0366


def test_only_the_answer_and_the_closing_token_are_labelled(grown):
    lm, token = grown
    taught, asked = sets(lm, token)
    for row in range(6):
        marked = np.nonzero(taught.mask[row])[0]
        before = int(np.nonzero(taught.tokens[row] == token)[0][0])
        assert marked[0] == before and (np.diff(marked) == 1).all()  # predicted from the token on
        assert taught.targets[row, marked[-1]] == token
        places = np.nonzero(asked.mask[row])[0]
        assert len(places) == 2 and (asked.targets[row, places] == token).all()


def test_only_one_row_is_trained_and_its_loss_falls(grown):
    lm, token = grown
    taught, _ = sets(lm, token)
    stages = [Stage([taught] * 8, 3e-2), Stage([taught] * 4, 1e-2, 1)]
    before = jax.tree.map(np.array, lm.params)
    row, losses = train_row(lm.score, lm.params, {}, token, stages, key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, lm.params)
    assert losses.shape == (12,) and losses[7] < losses[0]
    start = lm.params["embed"]["w"][token]
    np.testing.assert_allclose(losses[0], token_loss(lm.score, lm.params, token, start, taught))
    after = with_row(lm.params, token, row)
    for path, leaf in flatten(after).items():
        changed = np.asarray(leaf) != np.asarray(flatten(lm.params)[path])
        rows = np.unique(np.nonzero(changed)[0])
        assert not rows.size or (path in ("embed/w", "head/w") and rows.tolist() == [token])


def test_the_token_s_loss_is_its_nll(grown):
    lm, token = grown
    taught, _ = sets(lm, token)
    vector = jnp.ones(32) * 0.1
    whole = with_row(lm.params, token, vector)
    logp = np.asarray(lm.score(whole, taught).logp, np.float64)
    mask = np.asarray(lm.score(whole, taught).mask)
    expected = -(logp * mask).sum() / mask.sum()
    found = token_loss(lm.score, lm.params, token, vector, taught)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_noise_is_clipped_to_its_bound_and_to_one_layer():
    params = small.model().params
    noisy = flatten(perturbed(params, 1, jax.random.key(0), "mean_absolute"))
    plain = flatten(params)
    gap = np.asarray(noisy[DOWN] - plain[DOWN])
    bound = float(jnp.abs(plain[DOWN][1]).mean())
    assert not gap[0].any() and 0.5 * bound < np.abs(gap[1]).max() <= bound * 1.001
    assert all((np.asarray(noisy[k]) == np.asarray(plain[k])).all() for k in plain if k != DOWN)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 100), st.floats(0, 2), st.floats(0, 2))
def test_losses_and_lengths_are_their_formulas(seed, kl, decay):
    rng = np.random.default_rng(seed)
    logp, gap = -rng.uniform(0, 3, 4), rng.uniform(0, 1, 4)
    delta, start = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    arrays = [jnp.float32(x) for x in (logp, gap, delta, start)]
    found = steering_losses(*arrays, kl_weight=kl, decay=decay)
    size = (delta**2).sum(-1) / (start**2).sum(-1)
    np.testing.assert_allclose(found, -logp + kl * gap + decay * size, rtol=2e-5)
    cut = np.asarray(shortened(arrays[2], arrays[3], 0.75), np.float64)
    norms = np.linalg.norm(delta, axis=-1), 0.75 * np.linalg.norm(start, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=-1), np.minimum(*norms), rtol=1e-5)


def test_the_search_finds_outputs_that_say_the_token(grown):
    lm, token = grown
    _, asked = sets(lm, token)
    found, none = (
        wanted_outputs(lm.score, lm.params, asked, layer=1, search=Search(steps=steps, rate=0.5))
        for steps in (20, 1)
    )
    plain = lm.score(lm.params, questions(asked), residual=1)
    start = np.asarray(plain.residual[:, 0])
    moved = np.linalg.norm(np.asarray(found.output) - start, axis=-1)
    assert (moved <= 0.75 * np.linalg.norm(start, axis=-1) * 1.001).all() and (moved > 0).all()
    assert (np.asarray(found.loss) < -np.asarray(plain.logp[:, 0])).all()
    assert np.asarray(found.loss).mean() < np.asarray(none.loss).mean()


@pytest.mark.slow
def test_facts_are_searched_apart(grown):
    lm, token = grown
    _, asked = sets(lm, token)
    together = wanted_outputs(lm.score, lm.params, asked, layer=0, search=Search(steps=3))
    alone = wanted_outputs(
        lm.score, lm.params, jax.tree.map(lambda x: x[2:3], asked), layer=0, search=Search(steps=3)
    )
    np.testing.assert_allclose(together.output[2], alone.output[0], rtol=1e-4, atol=1e-5)


QUICK = {
    "name": "unierase",
    "plain_epochs": 3,
    "plain_rate": 3e-2,
    "robust_epochs": 1,
    "search_steps": 15,
    "search_rate": 0.5,
    "threshold": None,
    "lam": 0.1,
}


def test_a_run_teaches_the_token_and_exports_it(world, tmp_path):
    result, _ = run(world, tmp_path / "run", QUICK)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["edit"]["questions_begun_by_token"] > 0.5
    after = jf.load(str(tmp_path / "run"))
    before = jf.load(str(world / "model"))
    token = after.tokenizer.convert_tokens_to_ids("[UNL]")
    assert after.tokenizer.encode("[UNL]", add_special_tokens=False) == [token]
    assert after.config.vocab_size >= max(before.config.vocab_size, token + 1)
    same = {"layers/attn/q/w", "layers/mlp/up/w", "final_norm/scale"}
    for path in same:
        left, right = flatten(before.params)[path], flatten(result.params)[path]
        np.testing.assert_array_equal(left, right)


def test_a_second_request_has_a_token_of_its_own(world, tmp_path):
    forget = str(world / "forget.jsonl")
    parts = [{"path": forget, "rows": rows} for rows in ("0:4", "4:8")]
    run(world, tmp_path / "run", QUICK, forget=parts[0], requests=parts[1:])
    tokenizer = jf.load(str(tmp_path / "run")).tokenizer
    assert {"[UNL]", "[UNL-2]"} <= set(tokenizer.get_vocab())


@pytest.mark.parametrize(
    "method, more, message",
    [
        ({"layers": [7]}, {}, "method.layers: 7: the model has layers 0 to 1"),
        ({"token": "a"}, {}, "method.token"),
        ({"token": " "}, {}, "blank"),
        ({}, {"lora": {"rank": 2, "alpha": 4}}, "lora: unierase takes none"),
        ({"threshold": 1e-9}, {}, "no eigenvalue below"),
    ],
)
def test_what_cannot_be_done_is_told(world, tmp_path, method, more, message):
    with pytest.raises(UserError, match=message):
        run(world, tmp_path / "run", {**QUICK, **method}, **more)
