"""Which examples meet: counts, coverage, and independence of when and where a step is asked for."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.data.batches import PairedBatches
from jaxforget.data.pairing import PAIRINGS, Walks, drawn, going_round, modular_items
from jaxforget.engine.errors import UserError

SIZES = st.integers(1, 40)


def walks(forget, retain, pairing, seed=0):
    entities = None
    if pairing == "modular":
        people = [f"p{i % 3}" for i in range(max(forget, 3))][:forget]
        about = [*dict.fromkeys(people), *[None] * retain][: max(retain, len(set(people)))]
        entities = {"forget": tuple(people), "retain": tuple(about)}
        retain = len(about)
    return Walks({"forget": forget, "retain": retain}, "forget", seed, pairing, None, entities)


def epoch(walk, batch_size, number=0):
    """Examples of one epoch by role, joined."""
    steps = walk.steps(batch_size)
    made = [walk.examples(number * steps + k, batch_size) for k in range(steps)]
    return {role: np.concatenate([each[role] for each in made]) for role in walk.counts}


@given(SIZES, SIZES, st.integers(1, 9), st.sampled_from(PAIRINGS))
@settings(max_examples=150, deadline=None)
def test_indices_are_in_range_and_every_forget_example_is_seen(forget, retain, batch, pairing):
    walk = walks(forget, retain, pairing)
    found = epoch(walk, batch)
    assert set(found["forget"].tolist()) == set(range(forget))
    for role, count in walk.counts.items():
        assert found[role].dtype == np.int64
        assert not len(found[role]) or 0 <= found[role].min() <= found[role].max() < count
    if pairing not in ("longest", "modular"):
        assert sorted(found["forget"].tolist()) == list(range(forget))


@given(SIZES, SIZES, st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_proportional_shows_everything_once_in_an_epoch_and_evenly_in_each_step(f, r, batch):
    walk = walks(f, r, "proportional")
    for number in range(3):
        assert sorted(epoch(walk, batch, number)["retain"].tolist()) == list(range(r))
    for step in range(walk.steps(batch)):
        made = walk.examples(step, batch)
        assert abs(len(made["retain"]) - len(made["forget"]) * r / f) < 1


@given(SIZES, SIZES, st.integers(1, 9), st.sampled_from([0.5, 1.0, 3.0, 2.5]))
@settings(max_examples=60, deadline=None)
def test_a_ratio_is_kept_over_any_stretch_of_steps(f, r, batch, ratio):
    walk = replace(walks(f, r, "proportional"), ratio=ratio)
    made = [walk.examples(step, batch) for step in range(7)]
    for stop in range(1, 8):
        seen = [sum(len(each[role]) for each in made[:stop]) for role in ("forget", "retain")]
        assert seen[1] == int(seen[0] * ratio)


@given(SIZES, SIZES, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_longest_goes_once_through_the_larger_set_and_evenly_round_the_smaller(f, r, batch):
    found = epoch(walks(f, r, "longest"), batch)
    for role, count in (("forget", f), ("retain", r)):
        times = np.bincount(found[role], minlength=count)
        assert times.sum() == max(f, r) and times.max() - times.min() <= 1


def test_alternate_steps_hold_one_side():
    walk = walks(10, 25, "alternate")
    for step in range(2 * walk.steps(4)):
        made = walk.examples(step, 4)
        assert bool(len(made["forget"])) == (step % 2 == 0) == (not len(made["retain"]))
    assert sorted(epoch(walk, 4)["forget"].tolist()) == list(range(10))


def test_sequential_partners_never_change_and_are_the_first_rows():
    walk = walks(9, 30, "sequential")
    for number in range(3):
        found = epoch(walk, 4, number)
        np.testing.assert_array_equal(found["forget"], found["retain"])
    small = epoch(walks(9, 4, "sequential"), 4)
    np.testing.assert_array_equal(small["forget"] % 4, small["retain"])


def test_one_to_one_draws_uniformly_with_repetition():
    walk = walks(50, 20, "one_to_one")
    found = np.concatenate([epoch(walk, 8, number)["retain"] for number in range(80)])
    times = np.bincount(found, minlength=20)
    assert times.sum() == 4000 and 0.7 * 200 < times.min() and times.max() < 1.3 * 200
    assert len(set(epoch(walk, 8)["retain"].tolist())) < 50


@given(st.integers(0, 50), st.integers(0, 30), st.integers(1, 30))
def test_draws_and_rounds_are_slices_of_one_endless_walk(start, taken, count):
    for function in (drawn, going_round):
        whole = function(3, "retain", count, 0, 80)
        part = function(3, "retain", count, start, taken)
        np.testing.assert_array_equal(part, whole[start : start + taken])


# --- modular ---


def published():
    """As many rows of each kind as MELU has: 98 to forget, 1508 neighbours, 293 general."""
    forget = tuple(f"e{i % 20}" for i in range(98))
    neighbours = tuple(f"e{i % 20}" for i in range(1144 + 364))
    return forget, (*neighbours, *[None] * 293)


def test_an_epoch_of_the_published_sets_has_1801_items():
    forget, retain = published()
    pairs = modular_items(forget, retain, 0, 0)
    assert pairs.shape == (1801, 2)
    assert sorted(pairs[:, 1].tolist()) == list(range(1801))
    assert set(pairs[:, 0].tolist()) == set(range(98))


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_pairs_keep_the_entity_and_the_shorter_list_goes_round(data):
    people = data.draw(st.integers(1, 5))
    rows = st.lists(st.integers(0, people - 1), max_size=25).map(lambda own: [*range(people), *own])
    forget = tuple(f"p{i}" for i in data.draw(rows))
    about = [f"p{i}" for i in data.draw(rows)] + [None] * data.draw(st.integers(0, 9))
    retain = tuple(data.draw(st.permutations(about)))
    pairs = modular_items(forget, retain, 1, data.draw(st.integers(0, 3)))
    wanted = sum(max(forget.count(p), retain.count(p)) for p in set(forget)) + retain.count(None)
    assert len(pairs) == wanted
    times = {"f": Counter(), "r": Counter()}
    for f, r in pairs.tolist():
        assert retain[r] in (None, forget[f])
        if retain[r] is not None:
            times["f"][f] += 1
        times["r"][r] += 1
    assert set(times["f"]) == set(range(len(forget))) and set(times["r"]) == set(range(len(retain)))
    for side, entities in (("f", forget), ("r", retain)):
        for person in set(forget):
            own = [times[side][i] for i, who in enumerate(entities) if who == person]
            assert max(own) - min(own) <= 1
    assert all(times["r"][i] == 1 for i, who in enumerate(retain) if who is None)


def test_epochs_are_shuffled_anew():
    forget, retain = published()
    first, second = (modular_items(forget, retain, 0, number) for number in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(first, modular_items(forget, retain, 0, 0))


@pytest.mark.parametrize(
    ("forget", "retain", "says"),
    [
        (("a", None), ("a",), "example 1 of the forget set has no entity"),
        (("a", "b"), ("a", None), "1 of 2 entities.*no neighbours.*'b'"),
        (("a",), ("a", "c"), "example 1 of the retain set is about 'c'"),
    ],
)
def test_entities_that_do_not_fit_are_refused(forget, retain, says):
    with pytest.raises(UserError, match=says):
        modular_items(forget, retain, 0, 0)


# --- through batches ---


@pytest.fixture
def sets(new_set):
    rng = np.random.default_rng(3)
    sizes = {"forget": rng.integers(4, 30, 22), "retain": rng.integers(4, 30, 35)}
    made = {
        role: new_set(lengths, [n // 2 for n in lengths], len(lengths))
        for role, lengths in sizes.items()
    }
    about = {
        "forget": tuple(f"p{i % 4}" for i in range(22)),
        "retain": tuple(f"p{i % 5}" if i % 5 < 4 else None for i in range(35)),
    }
    return {role: replace(each, entities=about[role]) for role, each in made.items()}


def paired(sets, pairing, **more):
    return PairedBatches(sets, **{"batch_size": 4, "seed": 0, "pairing": pairing, **more})


def test_cyclic_is_what_it_has_always_been(new_set):
    sets = {name: new_set([4] * n, [4] * n, 1) for name, n in (("forget", 7), ("retain", 10))}
    batches = PairedBatches(sets, 3, 5)
    wanted = {0: ([3, 2, 0], [4, 9, 2]), 2: ([5], [5]), 3: ([3, 5, 2], [1, 7, 0])}
    for step, (forget, retain) in wanted.items():
        made = batches.examples(step)
        assert (made["forget"].tolist(), made["retain"].tolist()) == (forget, retain)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_batches_hold_what_the_pairing_says_whatever_the_rows(sets, pairing):
    for options in ({"length": 32}, {"length": 64, "row_multiple": 8}):
        batches = paired(sets, pairing, **options).plan(9)
        for step in (8, 3, 0, 5):
            made, _ = batches.at(step)
            for role, chosen in batches.examples(step).items():
                held = made[role].example
                assert sorted(held[held >= 0].tolist()) == sorted(chosen.tolist())


def test_pairings_have_fingerprints_of_their_own(sets):
    prints = {paired(sets, pairing).fingerprint for pairing in PAIRINGS}
    prints.add(paired(sets, "proportional", ratio=2.0).fingerprint)
    other = {**sets, "retain": replace(sets["retain"], entities=("p0", "p1", "p2", *["p3"] * 32))}
    prints.add(paired(other, "modular").fingerprint)
    assert len(prints) == len(PAIRINGS) + 2


def test_aligned_roles_follow_the_forget_set(sets):
    partner = sets["forget"]
    for pairing in PAIRINGS:
        more = {**sets, "alternate": partner}
        batches = paired(more, pairing, aligned=frozenset({"alternate"}))
        for step in range(6):
            made = batches.examples(step)
            np.testing.assert_array_equal(made["forget"], made["alternate"])


def test_settings_that_a_pairing_would_ignore_are_refused(sets):
    with pytest.raises(UserError, match="ratio: only the pairing 'proportional'"):
        paired(sets, "cyclic", ratio=2.0)
    with pytest.raises(UserError, match="above 0, got -1"):
        paired(sets, "proportional", ratio=-1.0)
    with pytest.raises(UserError, match="one set only"):
        paired({"forget": sets["forget"]}, "alternate")
    silent = {**sets, "retain": replace(sets["retain"], entities=None)}
    with pytest.raises(UserError, match="retain set must say whom"):
        paired(silent, "modular")
