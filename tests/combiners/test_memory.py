"""A-GEM, GRU, GEM, OGD and GPM against float64 NumPy and what they promise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from combiners.trees import conflicting, flat, same_bits, times, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.combiners import agem, compose, extend_basis, gem, gpm, gpm_basis, gru, ogd
from jaxforget.combiners import weighted_sum as weighted
from jaxforget.engine.errors import UserError

seeds = st.integers(0, 10**6)
TASK = {"task": 2.0}
SLOTS = ("one", "two", "three")
AGEM, GRU, GRU_BARE = agem(TASK), gru(TASK), gru(TASK, smoothing=1)
GEM = gem(TASK, memories=SLOTS)
GEM_BARE = gem(TASK, memories=SLOTS, margin=0, ridge=0)


@partial(jax.jit, static_argnums=0)
def combine(combiner, gradients, state):
    return combiner.combine(gradients, state, {})


def run(combiner, gradients):
    return combine(combiner, gradients, combiner.init(gradients["task"]))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, shared=st.floats(-3, 3))
def test_agem_never_climbs_the_memory(seed, shared):
    g = conflicting(seed, names=("task", "replay"), shared=shared)
    d, r = 2 * flat(g["task"]), flat(g["replay"])
    direction, _, metrics = run(AGEM, g)
    size = np.linalg.norm(d) * np.linalg.norm(r)
    if d @ r > 1e-6 * size:
        assert same_bits(direction, jax.jit(weighted(TASK).combine)({"task": g["task"]}, (), {})[0])
    else:
        expected = d - (d @ r) / (r @ r) * r
        np.testing.assert_allclose(flat(direction), expected, atol=2e-6 * np.abs(d).max())
    assert flat(direction) @ r >= -1e-6 * size
    assert float(metrics["cosine_to_replay"]) == pytest.approx(d @ r / size, abs=1e-5)


def test_gru_rectifies_against_a_moving_average():
    average, state = None, GRU.init(conflicting(0)["forget"])
    for step in range(4):
        g = conflicting(step, names=("task", "retain"), shared=-2.0)
        direction, state, metrics = combine(GRU, g, state)
        r = flat(g["retain"])
        average = r if average is None else 0.8 * r + 0.2 * average
        np.testing.assert_allclose(flat(state.average), average, rtol=1e-5, atol=1e-6)
        d = 2 * flat(g["task"])
        share = min(d @ average, 0) / (average @ average)
        np.testing.assert_allclose(flat(direction), d - share * average, atol=1e-4)
        assert float(metrics["binding"]) == (share < 0)
    assert int(state.steps) == 4


def test_gru_without_smoothing_is_agem_without_state():
    g = conflicting(3, names=("task", "retain"), shared=-2.0)
    direction, state, _ = run(GRU_BARE, g)
    same = {"task": g["task"], "replay": g["retain"]}
    assert state == () and same_bits(direction, run(AGEM, same)[0])


def gem_reference(d, g, margin, ridge):
    """The published dual, by a bounded quasi-Newton method in float64."""
    if (g.T @ d >= 0).all():
        return d
    k = g.T @ g + ridge * np.eye(g.shape[1])
    result = scipy.optimize.minimize(
        lambda v: 0.5 * v @ k @ v + v @ (g.T @ d),
        np.full(g.shape[1], margin + 0.1),
        jac=lambda v: k @ v + g.T @ d,
        bounds=[(margin, None)] * g.shape[1],
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-12, "maxiter": 10000},
    )
    return d + g @ result.x


@pytest.mark.parametrize(("combiner", "margin", "ridge"), [(GEM, 0.5, 1e-3), (GEM_BARE, 0.0, 0.0)])
@settings(max_examples=20, deadline=None)
@given(seed=seeds, shared=st.floats(-2, 2))
def test_gem_is_the_published_dual(combiner, margin, ridge, seed, shared):
    g = conflicting(seed, names=("task", *SLOTS), shared=shared, spread=0.2)
    d, columns = 2 * flat(g["task"]), np.stack([flat(g[name]) for name in SLOTS], axis=1)
    direction, _, metrics = run(combiner, g)
    expected = gem_reference(d, columns, margin, ridge)
    np.testing.assert_allclose(flat(direction), expected, atol=3e-5 * np.abs(expected).max())
    sizes = np.linalg.norm(columns, axis=0) * np.linalg.norm(d)
    assert (columns.T @ flat(direction) >= -2e-3 * sizes * (ridge > 0) - 1e-5 * sizes).all()
    assert float(metrics["cosine_to_one"]) == pytest.approx(columns[:, 0] @ d / sizes[0], abs=1e-5)


def test_gem_without_conflict_is_the_weighted_sum_bit_for_bit():
    g = conflicting(1, names=("task", *SLOTS), shared=0.0, spread=0)
    columns = jax.tree.map(lambda t, r: 2 * t + 0.1 * r, *[g["task"]] * 2)
    g = {"task": g["task"], **dict.fromkeys(SLOTS, columns)}
    direction, _, metrics = run(GEM, g)
    assert same_bits(direction, times(g["task"], 2)) and float(metrics["binding"]) == 0


@pytest.mark.parametrize("on", ["update", "gradient"])
def test_ogd_steps_are_orthogonal_to_every_stored_gradient(on):
    combiner = ogd(TASK, rank=5, on=on)
    assert (combiner.weights is not None) == (on == "update")
    state, stored = combiner.init(conflicting(0)["forget"]), []
    for seed in range(7):
        g = conflicting(seed, names=("old", "task"), shared=3.0)
        state = jax.jit(extend_basis)(state, g["old"])
        stored = (stored + [flat(g["old"])])[:5]
        if on == "gradient":
            x, moved, metrics = times(g["task"], 2), *combine(combiner, g_of(g), state)[::2]
        else:
            x = g["task"]
            moved, state, metrics = jax.jit(combiner.finish)(x, state, {})
        for column in stored:
            size = np.linalg.norm(column) * np.linalg.norm(flat(x))
            assert abs(column @ flat(moved)) <= 2e-6 * size
        q = np.linalg.qr(np.stack(stored, axis=1))[0]
        np.testing.assert_allclose(flat(moved), flat(x) - q @ (q.T @ flat(x)), atol=2e-5)
        share = np.linalg.norm(q.T @ flat(x)) / np.linalg.norm(flat(x))
        assert float(metrics["removed_share"]) == pytest.approx(share, rel=1e-4)
    assert int(state.count) == 5
    u = np.stack([flat(jax.tree.map(lambda b, i=i: b[i], state.basis)) for i in range(5)])
    np.testing.assert_allclose(u @ u.T, np.eye(5), atol=1e-6)


def g_of(g):
    return {"task": g["task"]}


def test_an_empty_basis_is_the_identity_bit_for_bit():
    combiner = ogd(TASK, rank=2)
    delta = tree(np.random.default_rng(0))
    delta["scale"] = delta["scale"].at[0].set(-0.0)
    moved, _, metrics = jax.jit(combiner.finish)(delta, combiner.init(delta), {})
    assert same_bits(moved, delta) and float(metrics["removed_share"]) == 0


def test_dependent_and_zero_gradients_do_not_fill_the_basis():
    combiner = ogd(TASK, rank=4)
    first, second = (tree(np.random.default_rng(i)) for i in (0, 1))
    state = combiner.init(first)
    mixed = jax.tree.map(lambda a, b: 3 * a - 2 * b, first, second)
    for gradient in (first, times(first, -7), times(first, 0), second, mixed):
        state = extend_basis(state, gradient)
    assert int(state.count) == 2


def test_nearly_dependent_gradients_still_make_an_orthonormal_basis():
    combiner, rng = ogd(TASK, rank=4), np.random.default_rng(3)
    common = tree(rng)
    state = combiner.init(common)
    for _ in range(4):
        near = jax.tree.map(lambda c, n: c + 4e-3 * n, common, tree(rng))
        state = extend_basis(state, near)
    u = np.stack([flat(jax.tree.map(lambda b, i=i: b[i], state.basis)) for i in range(4)])
    np.testing.assert_allclose(u @ u.T, np.eye(4), atol=3e-6)


def test_ogd_grows_from_a_term_until_it_is_full():
    combiner = ogd(TASK, rank=2, grow="retain")
    g = conflicting(0, names=("task", "retain"))
    assert combiner.weights is None
    state = combiner.init(g["task"])
    for seed in range(3):
        g = conflicting(seed, names=("task", "retain"))
        direction, state, _ = combine(combiner, g, state)
        assert same_bits(direction, times(g["task"], 2))
        moved, state, metrics = jax.jit(combiner.finish)(direction, state, {})
        if seed < 2:
            size = np.linalg.norm(flat(g["retain"])) * np.linalg.norm(flat(direction))
            assert abs(flat(g["retain"]) @ flat(moved)) <= 1e-6 * size
    assert float(metrics["basis_count"]) == 2


def low_rank_inputs(seed, size=12, samples=40, rank=4):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(size, rank)) @ rng.normal(size=(rank, samples))).astype(np.float32)


def test_gpm_updates_leave_the_outputs_for_old_inputs_unchanged():
    inputs = np.stack([low_rank_inputs(0), low_rank_inputs(1)])
    bases = jax.vmap(partial(gpm_basis, rank=6, threshold=1.0))(jnp.asarray(inputs))
    rng = np.random.default_rng(2)
    params = {"layers": {"up": {"w": jnp.asarray(rng.normal(size=(2, 12, 5)), jnp.float32)}},
              "head": {"w": jnp.asarray(rng.normal(size=(7, 5)), jnp.float32)}}  # fmt: skip
    combiner = compose(weighted(TASK), gpm({"layers/up/w": bases}))
    delta = jax.tree.map(lambda p: p * 0.1, params)
    assert combiner.finish is not None
    moved, _, _ = jax.jit(combiner.finish)(delta, combiner.init(params), params)
    for layer in range(2):
        d, x = np.asarray(moved["layers"]["up"]["w"][layer], np.float64), inputs[layer]
        assert np.abs(d.T @ x).max() <= 1e-5 * np.abs(x).max()
        q = np.linalg.qr(x.astype(np.float64))[0][:, :4]
        old = np.asarray(delta["layers"]["up"]["w"][layer], np.float64)
        np.testing.assert_allclose(d, old - q @ (q.T @ old), atol=1e-5)
    assert same_bits(moved["head"], delta["head"])


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_gpm_basis_covers_the_energy_with_the_fewest_columns(threshold):
    x = low_rank_inputs(3, rank=8) + 0.1 * low_rank_inputs(4, rank=12)
    basis = np.asarray(gpm_basis(x, rank=12, threshold=threshold), np.float64)
    used = np.abs(basis).max(axis=0) > 0
    values = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2
    shares = np.concatenate([[0], np.cumsum(values) / values.sum()])
    assert used.sum() == (np.argmax(shares >= threshold) if threshold < 1 else 12)
    assert used[: used.sum()].all()
    u = basis[:, used]
    np.testing.assert_allclose(u.T @ u, np.eye(used.sum()), atol=1e-4)


def test_gpm_basis_of_a_second_task_extends_the_first():
    a, b = low_rank_inputs(5, rank=3), low_rank_inputs(6, rank=3)
    first = gpm_basis(a, rank=8, threshold=0.999)
    both = np.asarray(gpm_basis(b, rank=8, threshold=0.999999, basis=first), np.float64)
    np.testing.assert_array_equal(both[:, :3], np.asarray(first)[:, :3])
    used = both[:, np.abs(both).max(axis=0) > 0]
    assert used.shape[1] == 6
    np.testing.assert_allclose(used.T @ used, np.eye(6), atol=1e-4)
    for x in (a, b):
        rest = x - used @ (used.T @ x)
        assert np.linalg.norm(rest) <= 2e-3 * np.linalg.norm(x)
    again = gpm_basis(b, rank=8, threshold=0.99, basis=jnp.asarray(both, jnp.float32))
    np.testing.assert_array_equal(again, np.float32(both))
    full = np.asarray(gpm_basis(b, rank=4, threshold=1.0, basis=first[:, :4]))
    assert (np.abs(full).max(axis=0) > 0).sum() == 4


W = {"w": jnp.ones((3, 4, 5))}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gru(TASK, smoothing=0), "gru: smoothing must be above 0"),
        (lambda: gem(TASK, memories=()), "gem: needs 1 to 9 memories, got 0"),
        (lambda: gem(TASK, memories=("a", "a")), "memories names a term twice"),
        (lambda: gem(TASK, memories=("a",), margin=-1), "gem: margin"),
        (lambda: ogd(TASK, rank=0), "ogd: rank must be an integer >= 1, got 0"),
        (lambda: ogd(TASK, rank=1, on="delta"), "on must be 'update' or 'gradient'"),
        (lambda: run(AGEM, {"task": W}), r"agem: .*no terms: \['replay'\]"),
        (lambda: gpm({"v": jnp.ones((4, 2))}).init(W), "'v' is no trained leaf"),
        (lambda: gpm({"w": jnp.ones((4, 2))}).init(W), r"must be \(3, 4, 'rank'\)"),
        (lambda: gpm_basis(jnp.ones((4, 2)), rank=5), "rank must be an integer from 1 to 4"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
