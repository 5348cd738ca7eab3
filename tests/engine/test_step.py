import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from engine import toy

from jaxforget.engine.state import init_state
from jaxforget.engine.step import micro_batch_means, split_rows, term_gradients
from jaxforget.engine.types import Combiner
from jaxforget.loops import plain


def summed(weights):
    return Combiner(init=lambda _: (), combine=lambda g, s, p: (g["sum"], s, {}), weights=weights)


def separate(weights):
    """The same sum, but through one pulled-back gradient per term."""

    def combine(gradients, state, params):
        parts = [jax.tree.map(lambda g, w=w: w * g, gradients[k]) for k, w in weights.items()]
        return jax.tree.map(lambda *g: sum(g), *parts), state, {}

    return Combiner(init=lambda _: (), combine=combine)


WEIGHTS = {"forget": 0.5, "retain": 2.0}
BATCHES = {"forget": toy.batch(1), "retain": toy.batch(2)}


def run(combiner, *, accumulate=1, optimizer=None, batches=BATCHES, params=None):
    optimizer = optimizer or optax.sgd(0.1)
    params = params or toy.params()
    step = plain(toy.score, toy.objective, combiner, optimizer, accumulate=accumulate)
    return jax.jit(step)(init_state(params, optimizer, combiner), {}, batches, {})


def close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-7), a, b)


def test_step_is_sgd_on_the_weighted_sum_by_finite_differences():
    params = toy.params()

    def loss(tree):
        terms, _ = toy.objective(toy.score, tree, BATCHES, {})
        return float(sum(WEIGHTS[k] * v for k, v in terms.items()))

    state, metrics = run(summed(WEIGHTS))
    assert float(metrics["loss"]) == pytest.approx(loss(params), rel=1e-6)
    moved = (params["mix"]["w"] - np.asarray(state.params["mix"]["w"])) / 0.1
    for i, j in ((0, 0), (3, 5), (7, 2)):
        shifted = []
        for sign in (1, -1):
            other = {k: {"w": v["w"].copy()} for k, v in params.items()}
            other["mix"]["w"][i, j] += sign * 1e-2
            shifted.append(loss(other))
        assert moved[i, j] == pytest.approx((shifted[0] - shifted[1]) / 2e-2, abs=2e-4)


def test_gradients_pulled_back_per_term_add_up_to_the_single_backward_pass():
    a, _ = run(summed(WEIGHTS))
    b, _ = run(separate(WEIGHTS))
    close(a.params, b.params)


def test_term_gradients_share_one_forward_pass():
    calls = []

    def counted(params, batch):
        calls.append(1)
        return toy.score(params, batch)

    combiner = separate(WEIGHTS)
    term_gradients(toy.objective, combiner, counted, toy.params(), BATCHES, {})
    assert len(calls) == 2  # one trace per role, none per term


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("make", [summed, separate])
def test_accumulation_equals_the_undivided_step(parts, make):
    whole, metrics = run(make(WEIGHTS))
    parted, parted_metrics = run(make(WEIGHTS), accumulate=parts)
    close(whole.params, parted.params, 1e-5)
    close(metrics, parted_metrics, 1e-4)


def test_the_peers_reduction_is_the_mean_of_the_micro_batches_own_means():
    """Rows 0, 2, ... and 1, 3, ... are the two micro-batches, the second with fewer targets."""
    batches = {role: short_second(batch) for role, batch in BATCHES.items()}
    halves = [
        {r: rows_of(b, slice(first, None, 2)) for r, b in batches.items()} for first in (0, 1)
    ]
    params = toy.params()
    terms = [toy.objective(toy.score, params, half, {})[0] for half in halves]
    optimizer, combiner = optax.sgd(0.1), summed(WEIGHTS)
    start = init_state(params, optimizer, combiner)
    found = {}
    for name, objective in (("peer", micro_batch_means(toy.objective, 2)), ("ours", toy.objective)):
        step = plain(toy.score, objective, combiner, optimizer, accumulate=2)
        found[name] = step(start, {}, batches, {})[1]
    whole, _ = toy.objective(toy.score, params, batches, {})
    for term in WEIGHTS:
        means = (terms[0][term] + terms[1][term]) / 2
        np.testing.assert_allclose(found["peer"][term], means, rtol=1e-5)
        np.testing.assert_allclose(found["ours"][term], whole[term], rtol=1e-5)
        assert abs(float(means) - float(whole[term])) > 1e-3


def short_second(batch):
    """Every second row keeps only its last labelled target."""
    mask = np.array(batch.mask)
    for row in mask[1::2]:
        row[np.flatnonzero(row)[:-1]] = 0
    return dataclasses.replace(batch, mask=mask)


def rows_of(batch, some):
    return jax.tree.map(lambda leaf: leaf[some], batch)


def test_split_rows_deals_rows_so_that_shards_keep_theirs():
    rows = np.arange(8)
    parts = np.asarray(split_rows(rows, 2))
    np.testing.assert_array_equal(parts, [[0, 2, 4, 6], [1, 3, 5, 7]])
    with pytest.raises(ValueError, match="cannot be divided"):
        split_rows(rows, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad):
    params = toy.params()
    params["head"]["w"][0, 0] = bad
    optimizer = optax.adam(0.1)
    state, metrics = run(summed(WEIGHTS), optimizer=optimizer, params=params)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    fresh = optimizer.init(params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh)
    assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == 1
    assert int(state.step) == 1


def test_an_update_that_overflows_is_refused_too():
    huge = optax.chain(optax.identity(), optax.scale(3e38), optax.scale(3e38))
    state, metrics = run(summed(WEIGHTS), optimizer=huge)
    assert int(metrics["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, toy.params())


def test_finish_sees_and_may_replace_the_realised_update():
    def finish(update, state, params):
        return jax.tree.map(jnp.zeros_like, update), state, {"seen": optax.tree.norm(update)}

    combiner = Combiner(
        init=lambda _: (),
        combine=lambda g, s, p: (g["sum"], s, {}),
        finish=finish,
        weights=WEIGHTS,
    )
    state, metrics = run(combiner)
    jax.tree.map(np.testing.assert_array_equal, state.params, toy.params())
    assert float(metrics["seen"]) > 0 and float(metrics["update_norm"]) == 0


def test_frozen_leaves_reach_the_model_and_stay():
    params = toy.params()
    trained, frozen = {"mix": params["mix"]}, {k: params[k] for k in ("embed", "head")}
    optimizer, combiner = optax.sgd(0.1), summed(WEIGHTS)
    step = plain(toy.score, toy.objective, combiner, optimizer)
    state, _ = step(init_state(trained, optimizer, combiner), frozen, BATCHES, {})
    full, _ = run(combiner)
    close(state.params["mix"], full.params["mix"])
    assert set(state.params) == {"mix"}
