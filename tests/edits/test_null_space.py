"""The closed-form edit against the dense system in float64, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxforget.edits import closed_form_edit, null_space_projector, second_moment, spread
from jaxforget.engine.errors import UserError

D_IN, D_OUT = 12, 5


def case(seed, m, kept=5):
    """Weight, keys and residuals; kept keys K0; a projector onto their null space; C; float64."""
    rng = np.random.default_rng(seed)
    weight, keys, residuals = (rng.normal(size=s) for s in ((D_IN, D_OUT), (m, D_IN), (m, D_OUT)))
    preserved = rng.normal(size=(30, kept)) @ rng.normal(size=(kept, D_IN))
    others = np.linalg.svd(preserved)[2][kept:]
    earlier = rng.normal(size=(7, D_IN))
    return weight, keys, residuals, preserved, others.T @ others, earlier.T @ earlier


def dense(keys, residuals, projector, seen, lam):
    """Delta of the source, which writes W as [out, in] and keys as columns."""
    k, r = keys.T, residuals.T
    system = projector @ (k @ k.T + seen) + lam * np.eye(len(k))
    return np.linalg.solve(system, projector @ k @ r.T)


def narrow(*arrays):
    return [None if a is None else jnp.asarray(a, jnp.float32) for a in arrays]


def change(weight, *rest, lam):
    """What the edit adds, in float32 as it is used."""
    zero = jnp.zeros(weight.shape, jnp.float32)
    return np.float64(closed_form_edit(zero, *narrow(*rest), lam=lam))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 3, 6, 7, 20]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.1, 1.0, 10.0]),
)
def test_it_equals_the_dense_solve_for_few_and_for_many_keys(seed, m, projected, seen, lam):
    weight, keys, residuals, _, projector, earlier = case(seed, m)
    given_too = projector if projected else None, earlier if seen else None
    got = change(weight, keys, residuals, *given_too, lam=lam)
    want = dense(
        keys,
        residuals,
        projector if projected else np.eye(D_IN),
        earlier if seen else np.zeros((D_IN, D_IN)),
        lam,
    )
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("m", [2, 20])
def test_in_float64_it_is_exact(m):
    weight, keys, residuals, _, projector, earlier = case(3, m)
    with jax.enable_x64(True):
        got = closed_form_edit(weight, keys, residuals, projector, earlier, lam=10.0)
        assert got.dtype == jnp.float64
    want = weight + dense(keys, residuals, projector, earlier, 10.0)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, D_IN - 1), st.floats(0.1, 3.0))
def test_the_projector_is_an_orthogonal_projection_that_cancels_the_kept_keys(seed, kept, scale):
    _, _, _, preserved, want, _ = case(seed, 1, kept)
    found = null_space_projector(
        second_moment(narrow(scale * preserved)), threshold=1e-4 * scale**2
    )
    values = np.linalg.eigvalsh(scale**2 * preserved.T @ preserved / 30)
    assume((values[-kept:] > 1e-3 * scale**2).all())  # no kept direction near the threshold
    projector = np.float64(found)
    np.testing.assert_allclose(projector @ projector, projector, atol=2e-6)
    np.testing.assert_array_equal(projector, projector.T)
    np.testing.assert_allclose(np.trace(projector), D_IN - kept, atol=1e-5)
    np.testing.assert_allclose(projector, want, atol=2e-3)
    np.testing.assert_allclose(preserved @ projector, 0, atol=5e-3)


def test_the_threshold_divides_the_eigenvalues():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    moment = jnp.float32(turn @ np.diag([1e-3, 1.9e-2, 2.1e-2, 5.0]) @ turn.T)
    want = turn[:, :2] @ turn[:, :2].T
    np.testing.assert_allclose(null_space_projector(moment), want, atol=1e-4)
    np.testing.assert_array_equal(null_space_projector(moment, threshold=10.0), np.eye(4))
    with pytest.raises(UserError, match="no eigenvalue below 0.0001, the smallest is 0.0"):
        null_space_projector(moment, threshold=1e-4)


def test_the_second_moment_is_the_mean_over_all_keys_however_they_come():
    keys = np.random.default_rng(0).normal(size=(9, 4))
    want = np.mean([np.outer(k, k) for k in keys], axis=0)
    for cut in ([], [1], [0, 4, 8]):
        got = second_moment(narrow(*np.split(keys, cut)))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("m", [3, 20])
def test_kept_keys_keep_their_outputs_and_edited_keys_gain_their_residuals(m):
    weight, keys, residuals, preserved, projector, _ = case(0, m)
    before = np.float32(weight)
    edited = closed_form_edit(*narrow(weight, keys, residuals, projector), lam=1e-3)
    np.testing.assert_allclose(preserved @ np.float64(edited - before), 0, atol=1e-4)
    gap = np.abs(keys @ np.float64(edited - before) - residuals).max()
    if m == 3:
        assert gap < 1e-2
    else:  # more keys than free directions: the best that the subspace allows
        best = np.linalg.lstsq(keys @ projector, residuals, rcond=1e-10)[0]
        np.testing.assert_allclose(edited - before, best, atol=1e-3)


@pytest.mark.parametrize("m", [3, 20])
def test_its_limits(m):
    weight, keys, residuals, _, projector, earlier = case(1, m)
    args = narrow(weight, keys, residuals, projector, earlier)
    nothing = [args[0], jnp.zeros((0, D_IN)), jnp.zeros((0, D_OUT)), *args[3:]]
    np.testing.assert_array_equal(closed_form_edit(*nothing), args[0])
    np.testing.assert_array_equal(closed_form_edit(*args, lam=1e12), args[0])
    sizes = [
        np.linalg.norm(change(weight, keys, residuals, projector, earlier, lam=lam))
        for lam in (0.1, 10.0, 1e3, 1e5)
    ]
    assert all(a > b for a, b in zip(sizes, sizes[1:], strict=False)) and sizes[-1] < 1e-2
    at_ease = [*args[:2], jnp.zeros_like(args[2]), *args[3:]]
    np.testing.assert_array_equal(closed_form_edit(*at_ease), args[0])
    blocked = [*args[:3], jnp.zeros((D_IN, D_IN)), None]
    np.testing.assert_array_equal(closed_form_edit(*blocked), args[0])


@pytest.mark.parametrize("m", [3, 20])
@pytest.mark.parametrize("identity", [None, np.eye(D_IN)])
def test_without_projector_and_lam_it_is_memit(m, identity):
    """argmin ||K0 W' - K0 W||^2 + ||K W' - V||^2 over W', as one least-squares problem."""
    rng = np.random.default_rng(2)
    weight, keys, residuals, *_ = case(2, m)
    others = rng.normal(size=(40, D_IN))
    want = np.linalg.lstsq(
        np.concatenate([others, keys]),
        np.concatenate([others @ weight, keys @ weight + residuals]),
        rcond=None,
    )[0]
    got = closed_form_edit(*narrow(weight, keys, residuals, identity, others.T @ others), lam=0.0)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("lam", [0.01, 10.0])
def test_two_edits_with_the_cache_equal_the_joint_edit(projected, lam):
    """Exactly, at any lam, where the second residual is measured after the first edit."""
    weight, keys, residuals, _, projector, _ = case(5, 8)
    projector = projector if projected else None
    first, second = (keys[:3], residuals[:3]), (keys[3:], residuals[3:])
    with jax.enable_x64(True):
        joint = closed_form_edit(weight, keys, residuals, projector, lam=lam)
        once = closed_form_edit(weight, *first, projector, lam=lam)
        left = second[1] - second[0] @ (np.asarray(once) - weight)
        cache = first[0].T @ first[0]
        twice = closed_form_edit(once, second[0], left, projector, cache, lam=lam)
        forgetful = closed_form_edit(once, second[0], left, projector, lam=lam)
        # the same cache as keys that shall not change
        rows = np.concatenate([first[0], second[0]])
        held = np.concatenate([np.zeros_like(first[1]), left])
        by_rows = closed_form_edit(once, rows, held, projector, lam=lam)
    np.testing.assert_allclose(twice, joint, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(by_rows, joint, rtol=1e-9, atol=1e-11)
    assert np.abs(forgetful - joint).max() > 1e-3


def test_a_narrow_weight_keeps_its_dtype():
    weight, keys, residuals, *_ = case(0, 3)
    got = closed_form_edit(jnp.asarray(weight, jnp.bfloat16), *narrow(keys, residuals), lam=1.0)
    assert got.dtype == jnp.bfloat16
    want = weight + dense(keys, residuals, np.eye(D_IN), 0.0, 1.0)
    np.testing.assert_allclose(np.float64(got), want, atol=0.03)


def test_a_residual_is_spread_evenly_over_the_layers():
    """Layers that add to one stream, each measuring what is still missing."""
    wanted = jnp.float32([[1.0, -2.0]])
    reached, parts = jnp.zeros_like(wanted), []
    for left in (4, 3, 2, 1):
        parts.append(spread(wanted - reached, left))
        reached = reached + parts[-1]
    np.testing.assert_allclose(reached, wanted, rtol=1e-6)
    for part in parts:
        np.testing.assert_allclose(part, wanted / 4, rtol=1e-6)
    with pytest.raises(UserError, match="layers_left must be an integer >= 1"):
        spread(wanted, 0)


def test_what_makes_no_sense_is_refused():
    weight, keys, residuals, _, projector, _ = narrow(*case(0, 3))
    with pytest.raises(UserError, match=r"do not fit: \(12, 5\), \(3, 12\) and \(2, 5\)"):
        closed_form_edit(weight, keys, residuals[:2])
    with pytest.raises(UserError, match="do not fit"):
        closed_form_edit(weight.T, keys, residuals)
    with pytest.raises(UserError, match="lam must be a finite number >= 0"):
        closed_form_edit(weight, keys, residuals, lam=-1.0)
    for more in ((), (projector,)):
        with pytest.raises(UserError, match="lam must be above 0"):
            closed_form_edit(weight, keys, residuals, *more, lam=0.0)
    with pytest.raises(UserError, match="projector must be symmetric"):
        closed_form_edit(weight, keys, residuals, projector + jnp.triu(jnp.ones((12, 12))))
    with pytest.raises(UserError, match=r"projector must be \(12, 12\), got \(4, 4\)"):
        closed_form_edit(weight, keys, residuals, jnp.eye(4))
    with pytest.raises(UserError, match="an input is not finite"):
        closed_form_edit(weight, keys, residuals.at[0, 0].set(jnp.nan))
    with pytest.raises(UserError, match="threshold must be above 0"):
        null_space_projector(jnp.eye(3), threshold=0.0)
    with pytest.raises(UserError, match="must be a square matrix"):
        null_space_projector(jnp.ones((3, 2)))
    with pytest.raises(UserError, match="symmetric and finite"):
        null_space_projector(jnp.eye(3).at[0, 0].set(jnp.nan))
    with pytest.raises(UserError, match="there is no key"):
        second_moment([jnp.zeros((0, 3))])
    with pytest.raises(UserError, match="one d_in"):
        second_moment([jnp.zeros((1, 3)), jnp.zeros((1, 4))])
