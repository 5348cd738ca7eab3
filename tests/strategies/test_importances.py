"""Fisher information and output sensitivity against float64, example by example."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives import toy_lm as toy
from objectives.cases import PARAMS, close

from jaxforget.engine.errors import UserError
from jaxforget.strategies import fisher, output_sensitivity
from jaxforget.strategies.importances import draw_targets

SOME = toy.examples(1, 5)
SINGLE = toy.pack(SOME, 6, 1)  # the sixth row is empty
HALVES = [jax.tree.map(lambda leaf, k=k: leaf[3 * k : 3 * k + 3], SINGLE) for k in (0, 1)]


def averaged(function, count, some=SOME, shaped=np.square):
    """Mean of the shaped gradient of function(p, [example]) over the first examples."""
    start = toy.float64(PARAMS)
    each = [toy.differences(lambda p, e=e: function(p, [e]), start) for e in some[:count]]
    return jax.tree.map(lambda *leaves: np.mean([shaped(x) for x in leaves], axis=0), *each)


def whole_logp(p, some):
    return sum(values.sum() for values in toy.token_logps(p, some))


@pytest.mark.parametrize("limit, count", [(None, 5), (2, 2), (4, 4), (9, 5)])
def test_the_empirical_fisher_squares_the_gradient_of_every_single_example(limit, count):
    expected = averaged(whole_logp, count)
    close(fisher(toy.score, PARAMS, HALVES, limit=limit), expected, 2e-4)
    if limit is None:
        close(fisher(toy.score, PARAMS, [SINGLE]), expected, 2e-4)


def test_squared_batches_are_another_smaller_fisher():
    expected = jax.tree.map(
        np.square, toy.differences(lambda p: toy.nll64(p, SOME), toy.float64(PARAMS))
    )
    close(fisher(toy.score, PARAMS, [toy.pack(SOME, 3, 2)], kind="squared_batch"), expected, 2e-4)


def test_squared_batches_of_independent_examples_are_smaller_by_their_number():
    """Where the model itself gave the targets, gradients average out: Avalanche's EWC is B times
    too weak for batches of B."""
    rng, size, start = np.random.default_rng(4), 16, toy.float64(PARAMS)
    tokens = np.zeros(1, np.int64)
    probs = np.exp(toy.log_softmax(start, tokens))[0]
    words = rng.choice(toy.VOCAB, size=(60, size), p=probs / probs.sum())
    batches = [
        toy.pack([(tokens, np.asarray([word]), np.ones(1, bool)) for word in some], size, 1)
        for some in words
    ]
    each = fisher(toy.score, PARAMS, batches)
    squared = fisher(toy.score, PARAMS, batches, kind="squared_batch")
    ratio = np.asarray(each["head"]).sum() / np.asarray(squared["head"]).sum()
    assert ratio == pytest.approx(size, rel=0.3)


def test_the_true_fisher_draws_targets_from_the_model():
    """Its mean over draws is the expectation over the model's own words, position by position."""
    one = SOME[:1]
    batch = toy.pack(one, 1, 1)
    tokens, _, labelled = one[0]
    start, expected = toy.float64(PARAMS), jax.tree.map(np.zeros_like, toy.float64(PARAMS))
    probs = np.exp(toy.log_softmax(start, tokens))
    for position in np.flatnonzero(labelled):
        for word in range(toy.VOCAB):

            def logp(p, position=position, word=word):
                return toy.log_softmax(p, tokens)[position, word]

            slope = toy.differences(logp, start)
            expected = jax.tree.map(
                lambda e, g, w=probs[position, word]: e + w * g**2, expected, slope
            )
    draws = 400
    found = [
        fisher(toy.score, PARAMS, [batch], kind="true", key=jax.random.key(seed))
        for seed in range(draws)
    ]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *found)
    spread = jax.tree.map(lambda *leaves: np.std(leaves, axis=0) / np.sqrt(draws), *found)
    for name in mean:
        assert (np.abs(mean[name] - expected[name]) <= 5 * spread[name] + 1e-5).all(), name


def test_drawn_words_have_the_models_frequencies_and_do_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(np.tile(rng.normal(size=(1, 1, 3)), (1, 20000, 1)), jnp.float32)
    weight, bias = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32), jnp.arange(7.0) / 5
    drawn = draw_targets(jax.random.key(1), hidden, weight, bias, None)
    logits = np.asarray(hidden[0, 0] @ weight.T + bias, np.float64)
    probs = np.exp(logits) / np.exp(logits).sum()
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=7)
    assert (((counts - 20000 * probs) ** 2) / (20000 * probs)).sum() < 24  # chi-square, p ~ 0.0005
    key = jax.random.key(7)
    together = fisher(toy.score, PARAMS, [SINGLE], kind="true", key=key)
    apart = fisher(toy.score, PARAMS, HALVES, kind="true", key=key)
    close(together, apart, 1e-5)


def test_every_example_has_draws_of_its_own():
    twice = toy.pack([SOME[0], SOME[0]], 2, 1)
    once = jax.tree.map(lambda leaf: leaf[:1], twice)
    key = jax.random.key(2)
    two, one = (fisher(toy.score, PARAMS, [b], kind="true", key=key) for b in (twice, once))
    assert np.abs(np.asarray(two["head"]) - np.asarray(one["head"])).max() > 1e-3


def test_mas_averages_the_magnitude_of_the_slope_of_the_squared_logits():
    def squared(p, some):
        (tokens, _, labelled) = some[0]
        logits = np.tanh(p["embed"][tokens] @ p["mix"])[labelled] @ p["head"].T
        return (logits**2).sum(-1).mean()

    expected = averaged(squared, 5, shaped=np.abs)
    close(output_sensitivity(toy.score, PARAMS, HALVES), expected, 2e-4)


def test_frozen_leaves_take_part_and_have_no_importance():
    trained, frozen = {"mix": PARAMS["mix"]}, {k: PARAMS[k] for k in ("embed", "head")}
    part = fisher(toy.score, trained, HALVES, frozen=frozen)
    whole = fisher(toy.score, PARAMS, HALVES)
    assert set(part) == {"mix"}
    close(part["mix"], whole["mix"], 1e-6)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="one example a row"):
        fisher(toy.score, PARAMS, [toy.pack(SOME, 3, 2)])
    with pytest.raises(UserError, match="needs a key"):
        fisher(toy.score, PARAMS, HALVES, kind="true")
    with pytest.raises(UserError, match="no Fisher information 'ture'. Did you mean 'true'"):
        fisher(toy.score, PARAMS, HALVES, kind="ture")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="no example"):
        fisher(toy.score, PARAMS, [replace(SINGLE, example=jnp.full((6, 1), -1))])
    with pytest.raises(UserError, match="limit"):
        fisher(toy.score, PARAMS, HALVES, limit=0)
