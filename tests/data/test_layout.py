import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxforget.data.layout import balanced, choose_tile, common, lay, shape_of

drawn_cases = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_STEPS = st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=9), min_size=1, max_size=4)
_LENGTHS = st.lists(st.integers(1, 70), min_size=12, max_size=12)


def laid(new_set, lengths, steps, rows, tile):
    """The set, the shape of all steps, and the batch of each."""
    made = new_set(lengths, [1 + (7 * i) % n for i, n in enumerate(lengths)])
    steps = [np.asarray(step) for step in steps]
    sizes = [made.lengths[step] for step in steps]
    shape = shape_of(made, steps, sizes, rows, tile)
    return made, shape, [lay(made, *each, shape) for each in zip(steps, sizes, strict=True)]


@drawn_cases
@given(lengths=_LENGTHS, steps=_STEPS, rows=st.integers(1, 3), tile=st.sampled_from([16, 64]))
def test_rows_hold_every_example_and_tiles_exactly_what_each_token_may_see(
    new_set, lengths, steps, rows, tile
):
    made, shape, found = laid(new_set, lengths, steps, rows, tile)
    for step, (batch, columns) in zip(steps, found, strict=True):
        assert batch.tokens.shape == (rows, shape.length)
        assert columns["logp"].shape == (rows, shape.targets)
        assert sorted(batch.example[batch.example >= 0]) == sorted(step)
        assert batch.mask.sum() == made.label_counts[step].sum()
        for row in range(rows):
            for number, example in enumerate(batch.example[row], 1):
                at = np.flatnonzero(batch.segments[row] == number)
                own = slice(*made.offsets[example : example + 2]) if example >= 0 else slice(0)
                np.testing.assert_array_equal(batch.tokens[row, at], made.tokens[own])
        assert_tiles_hold_all(batch)


def assert_tiles_hold_all(batch):
    """Each token is one tile's query, once, beside all that it may see of its own segment."""
    rows, length = batch.tokens.shape
    tiles = batch.tiles
    for row in range(rows):
        seen = {}
        asked = np.concatenate([queries[row].ravel() for queries in tiles.queries])
        for queries, keys in zip(tiles.queries, tiles.keys, strict=True):
            for some, among in zip(queries[row], keys[row], strict=True):
                among = among[among >= 0]
                assert len(set(among)) == len(among)
                for place in some[some >= 0]:
                    assert place not in seen
                    seen[place] = set(among.tolist())
        real = np.flatnonzero(batch.segments[row])
        assert sorted(seen) == real.tolist()
        np.testing.assert_array_equal(asked[tiles.back[row, real]], real)
        for place in real:
            begin = place - batch.positions[row, place]
            assert set(range(begin, place + 1)) <= seen[place]
            assert all(0 <= key < length for key in seen[place])


@drawn_cases
@given(
    sizes=st.lists(st.integers(1, 99), min_size=1, max_size=30).map(np.asarray),
    rows=st.integers(1, 5),
)
def test_balanced_rows_differ_by_no_more_than_one_item(sizes, rows):
    groups = balanced(sizes, rows)
    assert sorted(sum(groups, [])) == list(range(len(sizes))) and len(groups) == rows
    sums = [int(sizes[group].sum()) for group in groups]
    assert max(sums) - min(sums) <= sizes.max()


def test_tiles_grow_with_the_longest_example_and_are_few():
    assert [choose_tile(n) for n in (1, 16, 17, 64, 65, 512, 513, 2048)] == [
        *(16, 16, 32, 64, 64, 64),
        *(128, 256),
    ]
    for longest in range(1, 5000, 37):
        assert -(-longest // choose_tile(longest)) <= 8


def test_batches_of_one_shape_fit_into_what_is_common_to_several(new_set):
    lengths = [3 + 5 * i for i in range(12)]
    made, one, _ = laid(new_set, lengths, [[0, 1, 2]], 2, 16)
    _, other, _ = laid(new_set, lengths, [[11], [3, 4]], 2, 16)
    both = common([one, other])
    assert both.tiles == tuple(
        max(a, b) for a, b in zip((*one.tiles, 0, 0, 0), other.tiles, strict=True)
    )
    for ids in ([0, 1, 2], [11], [3, 4]):
        batch, _ = lay(made, np.asarray(ids), made.lengths[ids], both)
        assert batch.tokens.shape == (2, both.length)
        assert_tiles_hold_all(batch)
    _, coarse, _ = laid(new_set, lengths, [[0]], 2, 64)
    with pytest.raises(ValueError, match="2 kinds"):
        common([one, coarse])


def test_what_was_not_planned_for_is_refused(new_set):
    made, shape, _ = laid(new_set, [4, 4, 60, *[4] * 9], [[0, 1]], 1, 16)
    with pytest.raises(ValueError, match="a row of 1 examples has 60 tokens"):
        lay(made, np.asarray([2]), made.lengths[[2]], shape)
    with pytest.raises(ValueError, match="3 examples have tile 0, more than 2"):
        lay(made, np.asarray([0, 1, 0]), made.lengths[[0, 1, 0]], shape)
