"""Projections in a diagonal metric: the dense constrained solution, and what the card promises."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from combiners.trees import flat, like, same_bits, times, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.combiners.projections import project, remember, uncovered
from jaxforget.combiners.vectors import combination, cosine, dot, gram, norm

seeds = st.integers(0, 10**6)
columns_counts = st.sampled_from([1, 3])


@partial(jax.jit, static_argnames=("whiten", "one_sided", "keep", "fresh"))
def run(x, columns, scale, **options):
    return project(x, columns, scale, **options)


def problem(seed, k, metric=True, shared=1.0):
    """A tree, k columns that share a direction with it, and a preconditioner over 4 decades."""
    rng = np.random.default_rng(seed)
    x = tree(rng)
    common = shared * rng.normal(size=(k, 1)) * flat(x)[None]
    columns = [like(x, flat(tree(rng)) + c) for c in common]
    columns = [times(c, 10.0 ** rng.uniform(-2, 2)) for c in columns]
    scale = like(x, 10.0 ** rng.uniform(-2, 2, size=flat(x).size)) if metric else None
    g = np.stack([flat(c) for c in columns], axis=1)
    p = flat(scale) if metric else np.ones(flat(x).size)
    return x, columns, scale, flat(x), g, p


def exact(x, g, p, whiten, one_sided):
    """The dense solution, by least squares in the coordinates where the metric is the identity."""
    root = np.sqrt(p)
    side = 1.0 / root if not whiten else root  # x in metric P^-1 (update) or P (gradient)
    z, a = side * x, root[:, None] * g
    if one_sided:
        sign = -1.0 if whiten else 1.0
        multipliers = sign * scipy.optimize.nnls(a, sign * z, maxiter=10000)[0]
    else:
        multipliers = np.linalg.lstsq(a, z, rcond=None)[0]
    return (z - a @ multipliers) / side


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("whiten", [False, True])
@settings(max_examples=15, deadline=None)
@given(seed=seeds, k=columns_counts, metric=st.booleans())
def test_projection_is_the_dense_constrained_solution(whiten, one_sided, seed, k, metric):
    x, columns, scale, vector, g, p = problem(seed, k, metric)
    moved, _ = run(x, columns, scale, whiten=whiten, one_sided=one_sided)
    expected = exact(vector, g, p, whiten, one_sided)
    side = np.sqrt(p) if whiten else 1 / np.sqrt(p)
    size = np.linalg.norm(side * vector)
    assert np.linalg.norm(side * (flat(moved) - expected)) <= 2e-5 * size


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("whiten", [False, True])
@settings(max_examples=15, deadline=None)
@given(seed=seeds, k=columns_counts)
def test_what_is_left_has_no_product_with_the_columns(whiten, one_sided, seed, k):
    x, columns, scale, vector, g, p = problem(seed, k)
    moved, _ = run(x, columns, scale, whiten=whiten, one_sided=one_sided)
    left = flat(moved)
    products = g.T @ (p * left if whiten else left)
    side = np.sqrt(p) if whiten else 1 / np.sqrt(p)
    sizes = np.linalg.norm(np.sqrt(p)[:, None] * g, axis=0) * np.linalg.norm(side * vector)
    if one_sided:
        assert ((-products if whiten else products) <= 1e-6 * sizes).all()
    else:
        assert (np.abs(products) <= 1e-6 * sizes).all()


@pytest.mark.parametrize("one_sided", [False, True])
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_projection_is_idempotent(one_sided, seed):
    x, columns, scale, vector, _, p = problem(seed, 3)
    once, _ = run(x, columns, scale, whiten=True, one_sided=one_sided)
    twice, _ = run(once, columns, scale, whiten=True, one_sided=one_sided)
    side = np.sqrt(p)
    gap = np.linalg.norm(side * (flat(twice) - flat(once)))
    assert gap <= 1e-6 * np.linalg.norm(side * vector)


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_projection_depends_on_the_span_alone(seed):
    x, columns, scale, vector, _, p = problem(seed, 3)
    mix = np.random.default_rng(seed).normal(size=(3, 3)) + 2 * np.eye(3)
    if np.linalg.cond(mix) > 20:
        return
    units = [times(c, 1 / norm(c)) for c in columns]
    mixed = [combination([float(m) for m in row], units) for row in mix]
    a, _ = run(x, columns, scale, whiten=True)
    b, _ = run(x, mixed, scale, whiten=True)
    side = np.sqrt(p)
    assert np.linalg.norm(side * (flat(a) - flat(b))) <= 2e-5 * np.linalg.norm(side * vector)


def test_identity_metric_and_one_column_is_the_plain_removal_of_a_component():
    x, columns, _, vector, g, _ = problem(1, 1, metric=False)
    moved, found = run(x, columns, None)
    expected = vector - (vector @ g[:, 0]) / (g[:, 0] @ g[:, 0]) * g[:, 0]
    np.testing.assert_allclose(flat(moved), expected, atol=1e-6)
    assert float(found.binding) == 1


def test_projection_leaf_by_leaf_implies_the_whole_one_and_not_conversely():
    x, columns, scale, vector, g, p = problem(2, 1)
    leaves = jax.tree.leaves(x)
    column, metric = jax.tree.leaves(columns[0]), jax.tree.leaves(scale)
    apart = [
        run([leaf], [[c]], [m], whiten=True)[0][0]
        for leaf, c, m in zip(leaves, column, metric, strict=True)
    ]
    together = jax.tree.leaves(run(x, columns, scale, whiten=True)[0])
    size = np.linalg.norm(np.sqrt(p) * vector) * np.linalg.norm(np.sqrt(p) * g[:, 0])

    def products(moved):
        parts = zip(metric, column, moved, strict=True)
        return [float(np.sum(np.asarray(m * c * y, np.float64))) for m, c, y in parts]

    assert max(map(abs, products(apart))) < 1e-6 * size
    assert abs(sum(products(apart))) < 1e-6 * size and abs(sum(products(together))) < 1e-6 * size
    assert max(map(abs, products(together))) > 1e-3 * size


@pytest.mark.parametrize("options", [{}, {"one_sided": True}, {"whiten": True, "keep": 1.0}])
def test_zero_columns_change_nothing_bit_for_bit(options):
    x, columns, scale, *_ = problem(2, 3)
    x["scale"] = x["scale"].at[0].set(-0.0)
    moved, found = run(x, [times(c, 0) for c in columns], scale, **options)
    assert same_bits(moved, x) and float(found.binding) == 0


def test_a_harmless_update_passes_bit_for_bit():
    x, columns, scale, vector, g, _ = problem(3, 2)
    signs = -np.sign(vector @ g)
    columns = [times(c, sign) for c, sign in zip(columns, signs, strict=True)]
    moved, found = run(x, columns, scale, one_sided=True)
    assert same_bits(moved, x) and float(found.binding) == 0


@pytest.mark.parametrize("factor", [-0.3, -1.0, -40.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_a_gradient_opposed_to_the_protected_one_vanishes(factor, one_sided):
    _, columns, scale, *_ = problem(4, 1)
    x = times(columns[0], factor)
    moved, _ = run(x, columns, scale, whiten=True, one_sided=one_sided)
    assert float(norm(moved, scale)) <= 1e-6 * float(norm(x, scale))


def keep_reference(z, r_columns, fresh, kappa):
    """The helpful-tangent rule in whitened coordinates; columns newest first."""
    q = np.linalg.qr(r_columns[:, ::-1])[0]
    a, b = q.T @ z, q.T @ r_columns[:, :fresh].sum(axis=1)
    rest = z - q @ a
    kept = q @ np.where(a * b > 0, a, 0.0)
    length = np.linalg.norm(kept)
    return rest + min(1.0, kappa * np.linalg.norm(rest) / max(length, 1e-30)) * kept


@settings(max_examples=20, deadline=None)
@given(
    seed=seeds, k=columns_counts, kappa=st.sampled_from([0.0, 0.1, 1.0, np.inf]), fresh=st.just(1)
)
def test_the_helpful_tangent_part_is_kept_up_to_its_cap(seed, k, kappa, fresh):
    x, columns, scale, vector, g, p = problem(seed, k)
    root = np.sqrt(p)
    moved, _ = run(x, columns, scale, whiten=True, keep=kappa, fresh=fresh)
    expected = keep_reference(root * vector, root[:, None] * g, fresh, kappa)
    gap = np.linalg.norm(root * flat(moved) - expected)
    assert gap <= 5e-5 * np.linalg.norm(root * vector)


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_keeping_all_help_of_one_column_is_the_cone(seed):
    x, columns, scale, vector, _, p = problem(seed, 1)
    kept, _ = run(x, columns, scale, whiten=True, keep=np.inf)
    cone, _ = run(x, columns, scale, whiten=True, one_sided=True)
    gap = np.linalg.norm(np.sqrt(p) * (flat(kept) - flat(cone)))
    assert gap <= 2e-6 * np.linalg.norm(np.sqrt(p) * vector)


def test_memory_is_first_in_first_out_without_duplicates():
    rng = np.random.default_rng(0)
    first, second, third = (tree(rng) for _ in range(3))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), first)
    memory = (zero, zero)

    def push(memory, gradient):
        return remember(memory, [gradient], gram([gradient, *memory]), 0.999)

    for gradient, newest, oldest in (
        (first, first, None),
        (first, first, None),  # a duplicate stays out
        (times(first, 0), first, None),  # so does nothing at all
        (second, second, first),
        (third, third, second),
    ):
        memory = push(memory, gradient)
        assert float(cosine(memory[0], newest)) > 0.999
        assert float(norm(memory[0])) == pytest.approx(1, abs=4e-3)
        assert float(norm(memory[1])) == 0 if oldest is None else True
        assert oldest is None or float(cosine(memory[1], oldest)) > 0.999
        assert jax.tree.leaves(memory)[0].dtype == jnp.bfloat16


def test_uncovered_share_is_the_length_outside_the_span():
    x, columns, scale, vector, g, p = problem(9, 3)
    root = np.sqrt(p)
    q = np.linalg.qr(root[:, None] * g)[0]
    z = root * vector
    expected = np.linalg.norm(z - q @ (q.T @ z)) / np.linalg.norm(z)
    share = uncovered(gram([x, *columns], scale), 0, 1)
    assert float(share) == pytest.approx(expected, abs=1e-5)
    inside = combination((1.0, 2.0), columns[:2])
    assert float(uncovered(gram([inside, *columns], scale), 0, 1)) < 2e-3


def test_inner_products_of_low_precision_trees_are_summed_in_float32():
    rng = np.random.default_rng(1)
    a, b = tree(rng, dtype=jnp.bfloat16), tree(rng, dtype=jnp.bfloat16)
    assert float(dot(a, b)) == pytest.approx(flat(a) @ flat(b), rel=1e-5)
    assert dot(a, b).dtype == jnp.float32
