"""The mask against sorting, over any arrays, ties, dtypes and shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxforget_kernels import threshold_mask
from jaxforget_kernels.threshold_mask import reference, xla

# few values, so that many tie, with both zeros, subnormals and infinity among them
VALUES = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-42, -3e38, float("inf")]),
)


def by_hand(arrays, count):
    """In float64, entry by entry."""
    sizes = [np.abs(np.asarray(array, np.float64)) for array in arrays]
    together = sorted((float(x) for each in sizes for x in each.ravel()), reverse=True)
    return [each >= together[count - 1] if count else np.zeros(each.shape, bool) for each in sizes]


@settings(max_examples=60)
@given(st.data())
def test_it_marks_what_sorting_marks(data):
    shapes = data.draw(
        st.lists(st.sampled_from([(1,), (7,), (3, 5), (2, 1, 4)]), min_size=1, max_size=3)
    )
    arrays = [
        jnp.asarray(data.draw(st.lists(VALUES, min_size=n, max_size=n)), jnp.float32).reshape(shape)
        for shape in shapes
        for n in [int(np.prod(shape))]
    ]
    count = data.draw(st.integers(0, sum(array.size for array in arrays)))
    found, want = threshold_mask(arrays, count), by_hand(arrays, count)
    plain = reference.threshold_mask(arrays, count)
    for mine, sorted_, hand in zip(found, plain, want, strict=True):
        np.testing.assert_array_equal(mine, hand)
        np.testing.assert_array_equal(sorted_, hand)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_narrow_dtypes_are_ranked_by_what_they_hold(dtype):
    values = jnp.asarray(np.random.default_rng(0).normal(size=301), dtype)
    found = threshold_mask([values[:100], values[100:]], 60)
    want = by_hand([values[:100], values[100:]], 60)
    for mine, hand in zip(found, want, strict=True):
        np.testing.assert_array_equal(mine, hand)


def test_it_is_the_same_however_the_arrays_are_divided():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    values = np.random.default_rng(1).normal(size=(64, 24)).astype(np.float32)
    placed = jax.device_put(values, NamedSharding(mesh, P("x", None)))
    masked = jax.jit(lambda a: threshold_mask([a], 200)[0])
    np.testing.assert_array_equal(masked(placed), masked(values))
    text = masked.lower(placed).compile().as_text()
    assert "all-gather" not in text and "sort(" not in text


def test_counts_beyond_the_entries_are_refused():
    with pytest.raises(ValueError, match=r"count must be in 0\.\.3"):
        threshold_mask([jnp.ones(3)], 4)
    with pytest.raises(ValueError, match=r"count must be in 0\.\.3"):
        threshold_mask([jnp.ones(3)], -1)


def test_counts_beyond_int32_are_compared_exactly():
    counts = [jnp.int32(2**31 - 1)] * 5
    total = 5 * (2**31 - 1)
    for wanted, expected in ((total, (1, 1)), (total + 1, (0, 0)), (total - 1, (1, 0))):
        assert tuple(map(int, xla._compare(counts, wanted))) == expected
