"""Which examples a stream's steps see, and what a memory keeps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.data import memory
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.stream import Draws, chosen, joined, planned, replayed, walk
from jaxforget.engine.errors import UserError


def made(lengths, first=0):
    count = int(sum(lengths))
    tokens = np.arange(first, first + count, dtype=np.int32)
    offsets = np.cumsum([0, *lengths])
    return TokenisedSet(
        tokens, tokens + 1, np.ones(count, bool), offsets, np.arange(len(lengths)), f"{first}"
    )


def test_joined_and_chosen_sets_hold_the_same_examples():
    a, b = made([3, 5]), made([2, 4, 1], first=100)
    whole = joined([a, b])
    assert whole.lengths.tolist() == [3, 5, 2, 4, 1]
    some = chosen(whole, np.array([3, 0]))
    assert some.tokens.tolist() == [102, 103, 104, 105, 0, 1, 2]
    assert some.lengths.tolist() == [4, 3]
    assert chosen(whole, np.array([0, 3])).fingerprint != some.fingerprint


@given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 12))
def test_a_walk_sees_everything_once_a_pass_whatever_its_pieces(size, first, count):
    ids = np.arange(size) * 3
    whole = walk(ids, 0, first + count, (1, 2))
    np.testing.assert_array_equal(walk(ids, first, count, (1, 2)), whole[first:])
    for start in range(0, len(whole) - size + 1, size):
        assert sorted(whole[start : start + size]) == ids.tolist()


@given(st.integers(1, 40), st.floats(0, 0.99), st.integers(1, 60))
def test_replayed_shares_are_exact(batch, share, steps):
    counts = [replayed(step, batch, share) for step in range(steps)]
    assert [before for before, _ in counts] == np.cumsum([0, *(n for _, n in counts)])[:-1].tolist()
    assert abs(sum(n for _, n in counts) - steps * batch * share) <= 1
    assert all(0 <= n <= batch for _, n in counts)


def test_mixing_replaces_new_examples_and_keeps_the_budget():
    draws = Draws(np.arange(100), np.arange(1000, 1010), 8, (0, 1), share=0.25)
    plain = Draws(np.arange(100), np.zeros(0, np.int64), 8, (0, 1), share=0.25)
    fresh = []
    for step in range(6):
        ids = draws(step)["train"]
        assert len(ids) == 8 and (ids >= 1000).sum() == 2
        fresh += ids[ids < 1000].tolist()
        assert (plain(step)["train"] < 1000).all()
    # new examples come in the order in which they come without a memory
    without = [example for step in range(6) for example in plain(step)["train"]]
    assert fresh == without[: len(fresh)]


def test_further_roles_draw_the_same_wherever_a_run_was_interrupted():
    roles = {"replay": (np.arange(50), 4), "replay_again": (np.arange(50), 4)}
    draws = Draws(np.arange(10), np.zeros(0, np.int64), 2, (3, 0), roles=roles)
    first, again = draws(5), draws(5)
    assert all(np.array_equal(first[role], again[role]) for role in first)
    assert not np.array_equal(first["replay"], first["replay_again"])
    assert draws.fingerprint != Draws(draws.ids, draws.memory, 2, (4, 0), roles=roles).fingerprint


def test_planned_batches_hold_what_was_drawn():
    tokenised = made([4, 6, 3, 5, 7, 2])
    draws = Draws(np.arange(6), np.zeros(0, np.int64), 3, (0, 0))
    (batches,) = planned({"train": tokenised}, [(draws, 4)], length=None, row_multiple=2)
    for step in range(4):
        batch = batches.at(step)[0]["train"]
        assert batch.tokens.shape[0] % 2 == 0
        seen = sorted(batch.example[batch.example >= 0].tolist())
        assert seen == sorted(draws(step)["train"].tolist())


def test_impossible_draws_are_refused():
    with pytest.raises(UserError, match="share"):
        Draws(np.arange(3), np.arange(3), 2, (0,), share=1.0)
    with pytest.raises(UserError, match="nothing to draw"):
        Draws(np.arange(3), np.arange(3), 2, (0,), roles={"replay": (np.zeros(0, np.int64), 2)})


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 40))
def test_a_memory_keeps_what_its_kind_says(sizes, size):
    starts = np.cumsum([0, *sizes])
    tasks = [
        memory.order_of(np.arange(a, a + n), (0, t))
        for t, (a, n) in enumerate(zip(starts, sizes, strict=False))
    ]
    balanced = memory.kept(tasks, size)
    shares = [size // len(sizes) + (t < size % len(sizes)) for t in range(len(sizes))]
    assert [len(k) for k in balanced] == [min(n, s) for n, s in zip(sizes, shares, strict=True)]
    sample = memory.kept(tasks, size, "reservoir")
    assert sum(map(len, sample)) == min(size, sum(sizes))
    recent = memory.kept(tasks, size, "recent")
    assert len(recent[-1]) == min(size, sizes[-1])
    assert sum(map(len, recent)) == min(size, sum(sizes))
    for found in (balanced, sample, recent):
        for (ids, _), some in zip(tasks, found, strict=True):
            assert set(some) <= set(ids) and len(set(some)) == len(some)


def test_a_reservoir_keeps_every_example_with_the_same_probability():
    counts = np.zeros(60)
    for seed in range(400):
        tasks = [memory.order_of(np.arange(20 * t, 20 * t + 20), (seed, t)) for t in range(3)]
        counts[np.concatenate(memory.kept(tasks, 12, "reservoir"))] += 1
    expected = 400 * 12 / 60
    # chi-square of 59 degrees of freedom lies below 98 with probability 0.999
    assert ((counts - expected) ** 2 / (expected * (1 - 12 / 60))).sum() < 98


def test_the_hardest_are_those_of_the_highest_loss():
    ids, _ = memory.order_of(np.arange(5), (0, 0), np.array([0.1, 3.0, 2.0, 0.5, 2.0]))
    assert ids.tolist() == [1, 2, 4, 3, 0]
    with pytest.raises(UserError, match="memory.size"):
        memory.kept([(ids, np.zeros(5))], 0)
