import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from jaxforget.data.batches import PairedBatches, in_common, prefetch, widened
from jaxforget.data.layout import Shape
from jaxforget.data.pairing import order
from jaxforget.engine.errors import UserError


@pytest.fixture
def sets(new_set):
    rng = np.random.default_rng(3)
    forget, retain = rng.integers(4, 30, 22), rng.integers(4, 30, 35)
    return {
        "forget": new_set(forget, [n // 2 for n in forget], 1),
        "retain": new_set(retain, [n // 2 for n in retain], 2),
    }


def paired(sets, **options):
    return PairedBatches(sets, **{"batch_size": 8, "seed": 0, "length": 64, **options})


def seen(batch):
    return np.sort(batch.example[batch.example >= 0])


def test_an_epoch_shows_each_anchor_example_once_and_its_last_batch_is_short(sets):
    batches = paired(sets).plan(6)
    assert batches.steps_per_epoch == 3
    for epoch in range(2):
        shown = [seen(batches.at(3 * epoch + k)[0]["forget"]) for k in range(3)]
        assert [len(part) for part in shown] == [8, 8, 6]
        np.testing.assert_array_equal(np.sort(np.concatenate(shown)), np.arange(22))


def test_every_role_gives_as_many_examples_as_the_anchor(sets):
    batches = paired(sets).plan(6)
    for step in range(6):
        made, _ = batches.at(step)
        assert len(seen(made["retain"])) == len(seen(made["forget"]))


def test_cyclic_pairing_shows_retain_examples_equally_often(sets):
    batches = paired(sets)
    steps = 35 * batches.steps_per_epoch  # 35 epochs of 22 are 22 rounds of 35
    drawn = np.concatenate([batches.examples(step)["retain"] for step in range(steps)])
    np.testing.assert_array_equal(np.bincount(drawn), np.full(35, 22))
    for round_ in np.split(drawn, 22):
        np.testing.assert_array_equal(np.sort(round_), np.arange(35))
    part = np.bincount(drawn[:100], minlength=35)
    assert part.max() - part.min() <= 1


def test_a_batch_larger_than_a_set_goes_round_it(new_set, sets):
    tiny = {"forget": sets["forget"], "retain": new_set([5, 6, 7], [1, 1, 1])}
    batches = paired(tiny).plan(3)
    counts = np.bincount(seen(batches.at(0)[0]["retain"]), minlength=3)
    assert counts.sum() == 8 and counts.max() - counts.min() <= 1


def equal(left, right):
    for role in left[0]:
        for name in ("tokens", "targets", "segments", "positions", "mask", "example"):
            np.testing.assert_array_equal(
                getattr(left[0][role], name), getattr(right[0][role], name)
            )
        for name, column in left[1][role].items():
            np.testing.assert_array_equal(column, right[1][role][name])


def test_a_step_is_the_same_in_whatever_order_and_object_it_is_asked_for(sets):
    first, second = paired(sets).plan(9), paired(sets).plan(9)
    forward = [first.at(step) for step in range(9)]
    order.cache_clear()
    for step in (7, 2, 8, 0, 5):
        equal(second.at(step), forward[step])


def test_a_longer_plan_or_more_rows_never_change_what_a_step_sees(sets):
    short, wide = paired(sets).plan(3), paired(sets, row_multiple=8).plan(9)
    for step in range(3):
        left, right = short.at(step)[0], wide.at(step)[0]
        for role in left:
            rows = left[role].tokens.shape[0]
            np.testing.assert_array_equal(left[role].tokens, right[role].tokens[:rows])
            assert not right[role].mask[rows:].any()
    assert all(shape.rows % 8 == 0 for shape in wide.shapes.values())
    assert short.fingerprint == wide.fingerprint


def test_shapes_are_fixed_over_the_plan_and_columns_follow(sets):
    batches = paired(sets).plan(12)
    shapes = set()
    for step in range(12):
        made, columns = batches.at(step)
        for role, batch in made.items():
            assert columns[role]["logp"].shape == (len(batch.tokens), batch.max_targets)
            shapes.add((role, batch.tokens.shape, batch.example.shape, batch.max_targets))
    assert len(shapes) == 2


def test_rows_are_as_many_as_asked_for_where_no_length_is_given(sets):
    batches = paired(sets, length=None, row_multiple=3).plan(6)
    assert {len(each.tokens) for each in batches.at(5)[0].values()} == {3}
    assert batches.fingerprint == paired(sets).fingerprint


def test_rows_need_not_hold_what_no_planned_step_sees(new_set):
    """A run of few steps may have rows shorter than the longest example of the set."""
    lengths = [300, *[8] * 40]
    batches = paired({"forget": new_set(lengths, [2] * 41, 1)}, length=None, batch_size=4)
    longest = next(step for step in range(11) if 0 in batches.examples(step)["forget"])
    assert longest > 0
    short = batches.plan(longest)
    assert short.shapes["forget"].length == 32
    assert len(seen(short.at(longest - 1)[0]["forget"])) == 4
    with pytest.raises(ValueError, match="324 tokens"):
        short.at(longest)
    assert batches.plan(11).shapes["forget"].length >= 300


def test_two_sets_can_have_batches_of_the_same_shapes(sets, new_set):
    other = {**sets, "forget": new_set([9, 33, 12, 5, 27], [4] * 5, 7)}
    plans = [paired(each, length=None, row_multiple=2).plan(4, 16) for each in (sets, other)]
    shared = in_common([each.shapes for each in plans])
    for plan, own in zip(plans, (sets, other), strict=True):
        wide = replace(plan, shapes=shared)
        for step in range(4):
            for role, batch in wide.at(step)[0].items():
                assert batch.tokens.shape == (2, shared[role].length)
                np.testing.assert_array_equal(seen(batch), seen(plan.at(step)[0][role]))
                lengths = own[role].lengths[seen(batch)]
                assert (batch.segments > 0).sum() == lengths.sum()


def test_what_saves_a_compilation_leaves_at_most_an_eighth_empty():
    own = {"a": Shape(2, 256, 4, 64, 16, (3, 1)), "b": Shape(2, 64, 4, 8, 16, (2,))}
    near = {"a": Shape(2, 288, 3, 72, 16, (2, 2)), "unseen": Shape(2, 999, 1, 8, 16, (1,))}
    asked = []

    def plan(tile):
        asked.append(tile)
        return own

    wide = {"a": Shape(2, 288, 4, 72, 16, (3, 2)), "b": own["b"]}
    assert widened(plan, near) == wide and asked == [16]
    assert widened(plan, {"a": Shape(2, 320, 4, 64, 16, (3, 1))}) is None


def test_fingerprint_is_of_the_order_of_the_data(sets):
    base = paired(sets).fingerprint
    changed = replace(sets["retain"], fingerprint="other")
    others = [
        paired(sets, seed=1),
        paired(sets, batch_size=7),
        paired(sets, anchor="retain"),
        paired({**sets, "retain": changed}),
        paired({"forget": sets["forget"]}),
    ]
    assert len({base, *(each.fingerprint for each in others)}) == 6
    assert base == paired(sets, length=128, row_multiple=4).fingerprint


def test_orders_differ_by_role_epoch_and_seed_and_are_pinned():
    np.testing.assert_array_equal(np.sort(order(0, "forget", 0, 50)), np.arange(50))
    distinct = {
        tuple(order(seed, role, epoch, 50).tolist())
        for seed in (0, 1)
        for role in ("forget", "retain")
        for epoch in (0, 1)
    }
    assert len(distinct) == 8
    assert order(0, "forget", 0, 8).tolist() == [6, 1, 7, 4, 0, 3, 2, 5]


def test_bad_sets_are_refused(sets, new_set):
    with pytest.raises(UserError, match="the retain set is empty"):
        paired({**sets, "retain": new_set([], [])})
    with pytest.raises(UserError, match="no set for the role 'forget'"):
        paired({"a": sets["forget"], "b": sets["retain"]}, anchor="forget")
    with pytest.raises(UserError, match="row 4 of the retain set has .* packed length 8"):
        paired({"forget": new_set([5], [1]), "retain": new_set([9], [1], rows=[4])}, length=8)
    with pytest.raises(UserError, match="batch_size is 0"):
        paired(sets, batch_size=0)
    with pytest.raises(UserError, match="pairing: 'nearest'. Allowed: alternate, cyclic"):
        paired(sets, pairing="nearest")
    assert paired({"train": sets["forget"]}).anchor == "train"
    with pytest.raises(ValueError, match="call plan"):
        paired(sets).at(0)


def test_planning_forty_thousand_examples_takes_seconds_at_most(new_set):
    sizes = np.clip(np.random.default_rng(0).normal(56, 15, 40_000).astype(int), 15, 136)
    batches = paired({"train": new_set(sizes, sizes // 2)}, batch_size=32, length=512)
    begin = time.perf_counter()
    batches.plan(batches.steps_per_epoch)
    assert time.perf_counter() - begin < 5  # about 0.3 s on an idle machine


def test_prefetch_gives_results_in_order_from_another_thread():
    calls = []

    def fn(step):
        calls.append(threading.current_thread())
        return step * step

    assert list(prefetch(fn, 3, 9)) == [9, 16, 25, 36, 49, 64]
    assert list(prefetch(fn, 3, 3)) == []
    assert threading.main_thread() not in calls


def test_prefetch_stays_at_most_depth_ahead():
    begun = []
    stream = prefetch(lambda step: begun.append(step) or step, 0, 100, depth=2)
    assert next(stream) == 0
    time.sleep(0.05)
    assert max(begun) <= 2
    stream.close()


def test_prefetch_raises_where_the_result_would_have_come_and_closes():
    def fn(step):
        if step == 2:
            raise UserError("step two")
        return step

    stream = prefetch(fn, 0, 50)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(UserError, match="step two"):
        next(stream)
    before = threading.active_count()
    half = prefetch(lambda step: step, 0, 1000)
    next(half)
    half.close()
    assert threading.active_count() <= before


def test_aligned_roles_have_partners_in_the_same_row_and_segment(new_set, sets):
    rng = np.random.default_rng(5)
    lengths = rng.integers(4, 40, 22)
    alternate = new_set(lengths, [n // 3 for n in lengths], 3)
    together = paired({**sets, "alternate": alternate}, aligned=frozenset({"alternate"})).plan(6)
    for step in range(6):
        made, _ = together.at(step)
        np.testing.assert_array_equal(made["alternate"].example, made["forget"].example)
        for role, tokenised in (("forget", sets["forget"]), ("alternate", alternate)):
            batch = made[role]
            for row, segment in zip(*np.nonzero(batch.example >= 0), strict=True):
                example = batch.example[row, segment]
                begin, end = tokenised.offsets[example], tokenised.offsets[example + 1]
                inside = batch.segments[row] == segment + 1
                np.testing.assert_array_equal(
                    batch.tokens[row][inside], tokenised.tokens[begin:end]
                )
    alone = paired(sets)
    for step in range(6):
        for role in sets:
            np.testing.assert_array_equal(alone.examples(step)[role], together.examples(step)[role])
    with pytest.raises(UserError, match="22.*partner"):
        short = new_set([5, 6], [2, 2], 4)
        paired({**sets, "alternate": short}, aligned=frozenset({"alternate"}))
