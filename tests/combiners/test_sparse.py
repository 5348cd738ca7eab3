"""Sparse updates and masks: exact counts, and what must not move stays bit-equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combiners.trees import flat, same_bits, times, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.combiners import (
    compose,
    fisher_weighted,
    geometric_disentangle,
    ignore_top_k,
    keep_top_k,
    largest,
    layer_mask,
    multi_step_sparse,
    path_mask,
    saliency_mask,
    sign_top_k,
    weighted_sum,
)
from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.state import init_state
from jaxforget.engine.step import guarded_update

PARAMS = tree(np.random.default_rng(99))
SHARES = st.sampled_from([0.0, 0.004, 0.1, 0.5, 0.93, 1.0])


def once(finisher, delta, params=PARAMS, state=None):
    state = finisher.init(params) if state is None else state
    return jax.jit(finisher.finish)(delta, state, params)


def top(vector, share):
    """Indices of the largest magnitudes, by sorting."""
    return np.argsort(-np.abs(vector), kind="stable")[: round(share * vector.size)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), share=SHARES, half=st.booleans())
def test_the_largest_entries_are_marked_exactly(seed, share, half):
    some = tree(np.random.default_rng(seed), dtype=jnp.float32)
    some["head"]["w"] = some["head"]["w"] * 1e-20
    if half:
        some["scale"] = some["scale"] * 1e20
    marked = flat(largest(some, share))
    assert set(np.flatnonzero(marked)) == set(top(flat(some), share))
    for leaf, mask in zip(
        jax.tree.leaves(some), jax.tree.leaves(largest(some, share, per="leaf")), strict=True
    ):
        vector = np.asarray(leaf).ravel()
        assert set(np.flatnonzero(np.asarray(mask).ravel())) == set(top(vector, share))


def test_ties_with_the_last_entry_are_all_marked():
    some = {"w": jnp.array([3.0, -2.0, 2.0, 2.0, 1.0, 0.0, 0.0, -0.0])}
    assert np.asarray(largest(some, 0.25)["w"]).tolist() == [True] * 4 + [False] * 4
    assert np.asarray(largest(some, 0.75)["w"]).all()  # zeros tie with zeros


def test_low_precision_entries_rank_as_their_values():
    some = tree(np.random.default_rng(5), dtype=jnp.bfloat16)
    vector, marked = np.abs(flat(some)), flat(largest(some, 0.3)).astype(bool)
    assert vector[marked].min() > vector[~marked].max() and marked.sum() >= round(0.3 * marked.size)


def test_sharded_leaves_rank_together():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    some = {"w": jax.random.normal(jax.random.key(0), (64, 3))}
    placed = jax.device_put(some, jax.NamedSharding(mesh, jax.P("fsdp")))
    apart = jax.jit(lambda t: largest(t, 0.2))(placed)
    np.testing.assert_array_equal(apart["w"], largest(some, 0.2)["w"])


@pytest.mark.parametrize("per", ["all", "leaf"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_keep_and_ignore_are_complements(share, per):
    delta = tree(np.random.default_rng(1), 0.01)
    kept, _, metrics = once(keep_top_k(share, per=per), delta)
    rest, _, others = once(ignore_top_k(share, per=per), delta)
    np.testing.assert_array_equal(flat(kept) + flat(rest), flat(delta))
    mask = flat(largest(delta, share, per=per)).astype(bool)
    np.testing.assert_array_equal(flat(kept), np.where(mask, flat(delta), 0))
    assert float(metrics["kept_share"]) == pytest.approx(mask.mean())
    assert float(others["kept_share"]) == pytest.approx(1 - mask.mean())


@pytest.mark.parametrize(
    "identity", [keep_top_k(1), ignore_top_k(0), multi_step_sparse(1, 2), path_mask("")]
)
def test_identities_are_bit_exact(identity):
    delta = tree(np.random.default_rng(2))
    delta["scale"] = delta["scale"].at[:3].set(jnp.array([-0.0, 1e-45, jnp.inf]))
    state = identity.init(PARAMS)
    for _ in range(3):
        moved, state, _ = once(identity, delta, state=state)
        assert same_bits(moved, delta)


@pytest.mark.parametrize("per", ["all", "leaf"])
def test_signs_share_one_mean(per):
    delta = tree(np.random.default_rng(3))
    moved, _, _ = once(sign_top_k(0.25, per=per), delta)
    mask = largest(delta, 0.25, per=per)
    groups = [(flat(delta), flat(mask), flat(moved))]
    if per == "leaf":
        groups = list(zip(*(map(np.ravel, jax.tree.leaves(t)) for t in (delta, mask, moved)),
                          strict=True))  # fmt: skip
    for d, m, got in groups:
        m = m.astype(bool)
        expected = np.where(m, np.sign(d) * np.abs(d[m]).mean(), 0)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_every_period_the_small_accumulated_changes_are_undone(share):
    finisher, rng = multi_step_sparse(share, period=3), np.random.default_rng(4)
    params, state = PARAMS, finisher.init(PARAMS)
    start = PARAMS
    for step in range(1, 7):
        delta = tree(rng, 0.01)
        moved, state, metrics = once(finisher, delta, params, state)
        if step % 3:
            assert same_bits(moved, delta) and float(metrics["kept_share"]) == 1
        params = jax.tree.map(jnp.add, params, moved)
        if step % 3:
            continue
        full = jax.tree.map(jnp.add, jax.tree.map(lambda p, m: p - m, params, moved), delta)
        for leaf, first, whole in zip(*map(jax.tree.leaves, (params, start, full)), strict=True):
            change = np.asarray(whole - first, np.float64).ravel()
            kept = top(change, share)
            expected = np.asarray(first, np.float64).ravel()
            expected[kept] += change[kept]
            np.testing.assert_allclose(np.ravel(leaf), expected, atol=3e-7)
            assert (np.ravel(leaf) != np.ravel(first)).sum() <= len(kept) + 1
        assert same_bits(state.snapshot, params) and int(state.steps) == 0
        start = params


def train(combiner, steps=4, seed=7):
    """Parameters before and after some steps of AdamW with decay and clipping, random gradients."""
    rng = np.random.default_rng(seed)
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=0.05, schedule="constant", weight_decay=0.1), 10
    )
    params = jax.tree.map(jnp.copy, PARAMS)
    params["scale"] = params["scale"].at[0].set(-0.0)
    state = init_state(params, optimizer, combiner)
    step = jax.jit(lambda s, g: guarded_update(s, g, jnp.zeros(()), combiner, optimizer))
    for _ in range(steps):
        state, _ = step(state, {"sum": tree(rng)})
    return params, state.params


ONE = weighted_sum({"forget": 1.0})
SALIENT = largest(tree(np.random.default_rng(12)), 0.5)
SALIENT["scale"] = SALIENT["scale"].at[0].set(False)  # the parameter there is -0.0


def test_masked_entries_stay_bit_equal_under_momentum_and_decay():
    before, after = train(compose(ONE, saliency_mask(SALIENT)))
    for old, new, mask in zip(*map(jax.tree.leaves, (before, after, SALIENT)), strict=True):
        old, new, mask = map(np.asarray, (old, new, mask))
        np.testing.assert_array_equal(old.view(np.uint32)[~mask], new.view(np.uint32)[~mask])
        assert (old[mask] != new[mask]).all()


def test_the_snapshot_survives_the_donation_of_the_parameters():
    combiner, optimizer = (
        compose(ONE, multi_step_sparse(0.5, period=2)),
        make_optimizer(OptimizerConfig(name="sgd"), 4),
    )
    state = init_state(jax.tree.map(jnp.copy, PARAMS), optimizer, combiner)
    step = jax.jit(
        lambda s, g: guarded_update(s, g, jnp.zeros(()), combiner, optimizer), donate_argnums=0
    )
    for seed in range(3):
        state, _ = step(state, {"sum": tree(np.random.default_rng(seed))})
    assert np.isfinite(flat(state.params)).all()


def test_leaves_outside_a_path_mask_stay_bit_equal():
    before, after = train(compose(ONE, path_mask("mlp|head/b")))
    assert same_bits(before["scale"], after["scale"])
    assert same_bits(before["head"]["w"], after["head"]["w"])
    assert (before["head"]["b"] != after["head"]["b"]).all()
    assert (before["layers"]["mlp"]["w"] != after["layers"]["mlp"]["w"]).all()


@pytest.mark.parametrize("others", [False, True])
def test_only_the_chosen_layers_move(others):
    before, after = train(compose(ONE, layer_mask([0, 2], others=others)))
    w, v = before["layers"]["mlp"]["w"], after["layers"]["mlp"]["w"]
    assert same_bits(w[1], v[1]) and (w[0] != v[0]).all() and (w[2] != v[2]).all()
    assert same_bits(before["head"], after["head"]) is not others


@pytest.mark.parametrize("mode", ["divide", "multiply"])
def test_importance_scales_the_update(mode):
    rng = np.random.default_rng(6)
    importance = jax.tree.map(jnp.square, tree(rng))
    delta = tree(rng)
    f = flat(importance) / flat(importance).mean()
    factor = {"divide": 0.5 / (0.5 + f), "multiply": f / (0.5 + f)}[mode]
    moved, _, _ = once(fisher_weighted(importance, mode=mode, damping=0.5), delta)
    np.testing.assert_allclose(flat(moved), factor * flat(delta), rtol=1e-5)
    nothing = times(importance, 0)
    moved, _, _ = once(fisher_weighted(nothing), delta)
    assert same_bits(moved, delta)


def test_finishers_act_in_order_and_keep_the_single_backward_pass():
    delta = tree(np.random.default_rng(8))
    both = compose(ONE, path_mask("head"), keep_top_k(0.05))
    assert both.weights == {"forget": 1.0}
    assert both.finish is not None and compose(ONE) is ONE
    moved, _, metrics = jax.jit(both.finish)(delta, both.init(PARAMS), PARAMS)
    inside = flat(jax.tree.map(lambda d: 0 * d, delta) | {"head": delta["head"]})
    expected = np.zeros_like(inside)
    expected[top(inside, 0.05)] = inside[top(inside, 0.05)]
    np.testing.assert_array_equal(flat(moved), expected)
    assert float(metrics["kept_share"]) > 0


def test_a_projection_in_the_scope_of_a_path_mask_keeps_its_guarantee():
    rng = np.random.default_rng(9)
    g = {"forget": tree(rng), "retain": tree(rng)}
    scope = "layers/"
    combiner = compose(
        geometric_disentangle({"forget": 1.0}, scope=scope, sides="both"), path_mask(scope)
    )
    _, state, _ = combiner.combine(g, combiner.init(PARAMS), PARAMS)
    delta = tree(rng, 0.01)
    assert combiner.finish is not None
    moved, state, _ = combiner.finish(delta, state, PARAMS)
    size = np.linalg.norm(flat(g["retain"])) * np.linalg.norm(flat(delta))
    assert abs(flat(g["retain"]) @ flat(moved)) <= 1e-6 * size
    assert not flat(moved["head"]).any() and state[0].current == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keep_top_k(1.5), "keep_top_k: share must be a finite number >= 0 and <= 1"),
        (lambda: sign_top_k(0), "sign_top_k: share must be above 0"),
        (lambda: ignore_top_k(0.1, per="row"), "per must be 'all' or 'leaf', got 'row'"),
        (lambda: multi_step_sparse(0.2, 0), "period must be an integer >= 1, got 0"),
        (lambda: path_mask("nothing").init(PARAMS), "'nothing' matches no trained leaf"),
        (lambda: layer_mask([]), "at least one, got"),
        (lambda: layer_mask([3]).init(PARAMS), r"layer 3 of layers/mlp/w, which has shape \(3,"),
        (lambda: saliency_mask({"a": jnp.ones(3)}).init(PARAMS), "saliency_mask: a has shape"),
        (lambda: fisher_weighted(PARAMS, mode="add"), "mode must be 'divide' or 'multiply'"),
        (lambda: fisher_weighted(PARAMS, damping=0), "damping must be above 0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
