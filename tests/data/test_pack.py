import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxforget.data.pack import assign, pack, pack_all
from jaxforget.engine.errors import UserError

fast = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=25)


def labels_for(sizes):
    return [1 + (7 * i) % n for i, n in enumerate(sizes)]


def unpack(made, batch, columns, bounded):
    """Oracle: walk the batch token by token; yields (example, tokens, targets, mask, columns)."""
    found = []
    for row in range(batch.tokens.shape[0]):
        slot = 0
        for segment, index in enumerate(batch.example[row], 1):
            at = np.flatnonzero(batch.segments[row] == segment)
            if index < 0:
                assert len(at) == 0
                continue
            np.testing.assert_array_equal(at, np.arange(at[0], at[0] + len(at)))
            np.testing.assert_array_equal(batch.positions[row, at], np.arange(len(at)))
            logp = []
            for place in at[batch.mask[row, at] == 1]:
                logp.append(columns["logp"][row, slot if bounded else place])
                slot += 1
            found.append(
                (
                    int(index),
                    batch.tokens[row, at].tolist(),
                    batch.targets[row, at].tolist(),
                    batch.mask[row, at].tolist(),
                    logp,
                )
            )
        empty = batch.segments[row] == 0
        for array in (batch.tokens, batch.targets, batch.mask, batch.positions):
            assert not array[row, empty].any()
        if bounded:
            assert not columns["logp"][row, slot:].any()
            assert not columns["hidden"][row, slot:].any()
    return found


def original(made, index):
    part = slice(made.offsets[index], made.offsets[index + 1])
    entries = slice(made.label_offsets[index], made.label_offsets[index + 1])
    return (
        int(index),
        made.tokens[part].tolist(),
        made.targets[part].tolist(),
        made.mask[part].astype(float).tolist(),
        made.columns["logp"][entries].tolist(),
    )


@fast
@given(sizes=_SIZES, bounded=st.booleans(), spare=st.integers(0, 3), seed=st.integers(0, 9))
def test_packing_loses_and_invents_nothing(new_set, sizes, bounded, spare, seed):
    made = new_set(sizes, labels_for(sizes))
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(made), size=rng.integers(1, 30))  # some more than once
    rows = len(assign(made.lengths[chosen], 32, 8))
    shape = {"rows": rows + spare, "length": 32, "max_segments": 8}
    batch, columns = pack(made, chosen, **shape, max_targets=32 if bounded else None)
    assert batch.tokens.shape == (rows + spare, 32) and batch.example.shape == (rows + spare, 8)
    assert columns["logp"].shape == (rows + spare, 32)
    assert columns["hidden"].shape == (rows + spare, 32, 3)
    assert batch.max_targets == (32 if bounded else None)
    found = unpack(made, batch, columns, bounded)
    assert sorted(found) == sorted(original(made, index) for index in chosen)


def test_arrays_have_the_types_of_token_batch(new_set):
    batch, columns = pack(
        new_set([5, 9], [2, 3]), [0, 1], rows=2, length=16, max_segments=4, max_targets=8
    )
    for name in ("tokens", "targets", "segments", "positions", "example"):
        assert getattr(batch, name).dtype == np.int32, name
    assert batch.mask.dtype == np.float32 and columns["logp"].dtype == np.float32


def test_columns_follow_the_stable_order_of_labelled_positions(new_set):
    made = new_set([6, 9, 4, 7], [3, 9, 1, 5])
    batch, columns = pack(made, range(4), rows=2, length=16, max_segments=4, max_targets=16)
    order = np.argsort(-batch.mask, axis=1, kind="stable")  # as a model gathers its targets
    ids = np.take_along_axis(batch.targets, order, 1)
    by_target = dict(zip(made.targets[made.mask].tolist(), made.columns["logp"], strict=True))
    for row in range(2):
        for slot in range(int(batch.mask[row].sum())):
            assert columns["logp"][row, slot] == by_target[int(ids[row, slot])]


@fast
@given(sizes=_SIZES, length=st.integers(30, 80), most=st.integers(1, 9))
def test_rows_hold_what_they_can_and_no_two_could_be_one(sizes, length, most):
    sizes = np.asarray(sizes)
    rows = assign(sizes, length, most)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert rows == assign(sizes, length, most)
    used = [int(sizes[row].sum()) for row in rows]
    assert max(used) <= length and max(map(len, rows)) <= most
    if len(rows) > 1:  # as first-fit decreasing guarantees
        full = assign(sizes, length)
        used = [int(sizes[row].sum()) for row in full]
        assert all(a + b > length for a, b in zip(used, used[1:], strict=False))


def test_packing_is_dense_on_lengths_like_tofus():
    sizes = np.clip(np.random.default_rng(0).normal(56, 15, 4000).astype(int), 15, 136)
    rows = assign(sizes, 512)
    assert sizes.sum() / (len(rows) * 512) > 0.98


def test_what_does_not_fit_is_an_error(new_set):
    made = new_set([5, 9, 9], [5, 9, 9])
    with pytest.raises(ValueError, match="3 examples need 2 rows of 16, not 1"):
        pack(made, range(3), rows=1, length=16, max_segments=4)
    with pytest.raises(ValueError, match="labelled targets, more than 8"):
        pack(made, range(3), rows=3, length=16, max_segments=4, max_targets=8)
    with pytest.raises(ValueError, match="do not fit rows of 8"):
        assign(np.asarray([9]), 8)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_pack_all_holds_each_example_once_in_one_shape(new_set, rows):
    sizes = [3 + i % 20 for i in range(40)]
    made = new_set(sizes, labels_for(sizes))
    batches = pack_all(made, rows=rows, length=64)
    seen = np.concatenate([batch.example.ravel() for batch in batches])
    np.testing.assert_array_equal(np.sort(seen[seen >= 0]), np.arange(40))
    shapes = {(b.tokens.shape, b.example.shape, b.max_targets) for b in batches}
    assert shapes == {((rows, 64), (rows, 8), 64)}
    assert sum(int(batch.mask.sum()) for batch in batches) == int(made.mask.sum())


def test_pack_all_refuses_an_example_that_does_not_fit_by_its_row(new_set):
    with pytest.raises(UserError, match="row 77 of this set has 70 tokens.*packed length 64"):
        pack_all(new_set([5, 70], [1, 1], rows=[76, 77]), rows=2, length=64)
