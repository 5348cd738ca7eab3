"""Vectors without their part in a span, against float64, over any arrays and shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxforget_kernels import extend_orthonormal, project_out
from jaxforget_kernels.project_out import reference

SHAPES = ((5,), (3, 4), (2, 3, 3), (1,), (17,))


def orthonormal(shapes, k, rng, dtype=np.float32):
    """k orthonormal vectors, stored as arrays of these shapes."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    q = np.linalg.qr(rng.normal(size=(sum(sizes), k)))[0].T
    parts = np.split(q, np.cumsum(sizes)[:-1], axis=1)
    return [jnp.asarray(x.reshape(k, *s), dtype) for x, s in zip(parts, shapes, strict=True)]


def flat(arrays, count):
    return np.concatenate([np.asarray(a, np.float64).reshape(count, -1) for a in arrays], axis=1)


@settings(max_examples=50)
@given(st.data())
def test_it_is_the_difference_in_float64(data):
    shapes = data.draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    total = sum(int(np.prod(shape)) for shape in shapes)
    k = data.draw(st.integers(1, min(4, total)))
    many = data.draw(st.sampled_from([None, 1, 3]))
    dtype = data.draw(st.sampled_from([jnp.float32, jnp.bfloat16]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    basis = orthonormal(shapes, k, rng)
    if data.draw(st.booleans()):  # an empty slot
        basis = [u.at[-1].set(0.0) for u in basis]
    lead = () if many is None else (many,)
    arrays = [jnp.asarray(rng.normal(size=(*lead, *shape)), dtype) for shape in shapes]
    q, g = flat(basis, k), flat(arrays, many or 1)
    want = g - (g @ q.T) @ q
    precise = dtype == jnp.float32
    for made in (project_out(basis, arrays), reference.project_out(basis, arrays)):
        assert [(x.shape, x.dtype) for x in made] == [(a.shape, dtype) for a in arrays]
        # bfloat16 rounds the results, once, to 8 bits
        np.testing.assert_allclose(
            flat(made, many or 1), want, rtol=0 if precise else 2**-8, atol=3e-6
        )


def test_a_known_gram_matrix_makes_up_for_a_basis_that_is_not_quite_orthonormal():
    rng = np.random.default_rng(0)
    basis = [u + 3e-3 * rng.normal(size=u.shape) for u in orthonormal(SHAPES, 3, rng)]
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in SHAPES]
    q = flat(basis, 3)
    left = {
        known: np.abs(q @ flat(project_out(basis, arrays, gram=gram), 1)[0]).max()
        for known, gram in ((False, None), (True, jnp.asarray(q @ q.T, jnp.float32)))
    }
    assert left[True] < 0.05 * left[False]


def test_a_basis_grows_by_what_is_new_until_it_is_full():
    rng = np.random.default_rng(1)
    vectors = [[rng.normal(size=s).astype(np.float32) for s in SHAPES] for _ in range(4)]
    vectors.insert(1, [2.5 * v for v in vectors[0]])  # in the span
    vectors.insert(2, [np.full(s, np.nan, np.float32) for s in SHAPES])
    vectors.insert(3, [np.zeros(s, np.float32) for s in SHAPES])
    basis = [jnp.zeros((3, *s)) for s in SHAPES]
    count, grow, counts = jnp.int32(0), jax.jit(extend_orthonormal), []
    for vector in vectors:
        basis, count = grow(basis, count, vector)
        counts.append(int(count))
    assert counts == [1, 1, 1, 1, 2, 3, 3]
    q = flat(basis, 3)
    np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-6)
    kept = flat([np.stack([vectors[i][j] for i in (0, 4, 5)]) for j in range(len(SHAPES))], 3)
    np.testing.assert_allclose(kept - (kept @ q.T) @ q, 0, atol=1e-5)


def test_arrays_stay_where_they_lie():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(2)
    shapes = ((16, 24), (8, 3))
    basis = orthonormal(shapes, 4, rng)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]

    def place(array, *spec):
        return jax.device_put(array, NamedSharding(mesh, P(*spec)))

    spread = [place(u, None, "x", None) for u in basis], [place(a, "x", None) for a in arrays]
    function = jax.jit(project_out)
    with jax.set_mesh(mesh):
        found, text = function(*spread), function.lower(*spread).compile().as_text()
    for mine, alone in zip(found, project_out(basis, arrays), strict=True):
        np.testing.assert_allclose(mine, alone, atol=2e-6)
    assert "all-gather" not in text and "all-to-all" not in text


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 arrays of the basis for 2"):
        project_out([jnp.ones((2, 3))], [jnp.ones(3), jnp.ones(3)])
    with pytest.raises(ValueError, match="array 0 is"):
        project_out([jnp.ones((2, 3))], [jnp.ones(4)])
    with pytest.raises(ValueError, match="same number of vectors"):
        project_out([jnp.ones((2, 3)), jnp.ones((3, 3))], [jnp.ones(3), jnp.ones(3)])
    with pytest.raises(ValueError, match="one vector at a time"):
        extend_orthonormal([jnp.ones((2, 3))], jnp.int32(0), [jnp.ones((2, 3))])
