"""Schedules of injected texts and the batches that hold them."""

import numpy as np
import pytest

from jaxforget.data.facts import facts_of, probes_of
from jaxforget.data.injection import InjectedBatches, schedule_of
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError

MODES = {"paraphrased": 2, "duplicated": 2, "once": 1, "never": 1}


def numbered(*lengths, first=0):
    """Examples whose tokens count up from `first`; a target is its token + 1."""
    offsets = np.cumsum([0, *lengths])
    tokens = first + np.arange(offsets[-1], dtype=np.int32)
    mask = np.ones(len(tokens), bool)
    rows = np.arange(len(lengths))
    return TokenisedSet(tokens, tokens + 1, mask, offsets, rows, f"{first} {lengths}")


def test_each_mode_is_presented_at_its_updates_and_in_its_wording():
    found = schedule_of(MODES, start=5, every=10, times=3)
    assert found.at(5) == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]
    assert found.at(15) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert found.at(25) == [(0, 2), (1, 2), (2, 2), (3, 2)]
    assert [found.at(step) for step in (0, 4, 6, 14, 35, 45)] == [[]] * 6
    assert found.steps(0) == found.steps(5) == [5, 15, 25] and found.steps(4) == [5]
    assert found.end == 26
    # the original, then other words, in turn; duplicates never change
    assert [found.wording(0, time, 3) for time in range(4)] == [0, 1, 2, 0]
    assert [found.wording(2, time, 3) for time in range(4)] == [0, 0, 0, 0]


def test_spread_texts_are_each_presented_once_a_round_whatever_their_mode():
    found = schedule_of(MODES, start=0, every=12, times=2, per_step=2, apart=4, seed=3)
    shown = [found.at(step) for step in range(24)]
    assert [len(each) for each in shown if each] == [2, 2, 1, *found_second(found)]
    assert [step for step in range(12) if shown[step]] == [0, 4, 8]
    for item in range(5):
        at = [step for step, each in enumerate(shown) if item in [i for i, _ in each]]
        assert at == found.steps(item)
    with pytest.raises(UserError, match=r"take 9 updates.*again after 8"):
        schedule_of(MODES, start=0, every=8, times=2, per_step=2, apart=4)


def found_second(found):
    """Texts in each batch of the second round, in which the one presented once is missing."""
    counts = {}
    for item in (0, 1, 2, 3):
        counts[found.offsets[item]] = counts.get(found.offsets[item], 0) + 1
    return [counts[offset] for offset in sorted(counts)]


def batches(**changes):
    given = {
        "base": numbered(50, 53),
        "texts": numbered(4, 10, 3, first=1000),
        "pieces": [[np.asarray([0]), np.asarray([1, 2])]],
        "schedule": schedule_of({"paraphrased": 1}, start=1, every=2, times=2),
        "batch_size": 3,
        "length": 10,
        "seed": 0,
    }
    return InjectedBatches(**{**given, **changes})


def test_a_text_takes_the_front_of_its_row_and_cuts_the_tail_of_what_was_there():
    found = batches()
    plain = batches(schedule=schedule_of({"never": 1}, start=1, every=2, times=2))
    for step in (0, 2, 4):
        np.testing.assert_array_equal(found.at(step)[0]["train"].tokens, _plain(plain, step).tokens)
    ours, theirs = found.at(1)[0]["train"], _plain(plain, 1)
    np.testing.assert_array_equal(ours.tokens[0], [1000, 1001, 1002, 1003, *theirs.tokens[0, :6]])
    np.testing.assert_array_equal(ours.targets[0], ours.tokens[0] + 1)
    assert ours.segments[0].tolist() == [1] * 4 + [2] * 6
    assert ours.positions[0].tolist() == [*range(4), *range(6)]
    assert ours.example[0].tolist() == [found.rows + 0, theirs.example[0, 0]]
    np.testing.assert_array_equal(ours.tokens[1:], theirs.tokens[1:])
    # the second wording has two pieces: a whole row, and the front of another
    ours, theirs = found.at(3)[0]["train"], _plain(plain, 3)
    assert ours.tokens[0].tolist() == list(range(1004, 1014)) and ours.example[0, 1] == -1
    np.testing.assert_array_equal(ours.tokens[1], [1014, 1015, 1016, *theirs.tokens[1, :7]])
    np.testing.assert_array_equal(ours.tokens[2], theirs.tokens[2])
    assert found.fingerprint != plain.fingerprint


def _plain(plain, step):
    return plain.at(step)[0]["train"]


def test_a_pass_through_the_base_corpus_sees_every_whole_row_once():
    found = batches(batch_size=5, schedule=schedule_of({"never": 1}, start=0, every=1, times=1))
    assert found.rows == 10
    seen = np.concatenate([_plain(found, step).tokens[:, 0] for step in (0, 1)])
    assert sorted(seen.tolist()) == list(range(0, 100, 10))
    again = np.concatenate([_plain(found, step).tokens[:, 0] for step in (2, 3)])
    assert sorted(again.tolist()) == sorted(seen.tolist()) and again.tolist() != seen.tolist()


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"update 3 take 2 rows.*batch has 1"):
        batches(batch_size=1)
    with pytest.raises(UserError, match="less than a row"):
        batches(base=numbered(9))


EXTRA = {"other": ["a b.", "b a."], "begin": ["It is", "It was "], "end": ["blue", "red"]}


def test_facts_and_probes_come_from_named_columns():
    records = [Record("", "A text.", 7, "f.json", EXTRA)]
    (fact,) = facts_of(records, "other")
    assert fact.paraphrases == ("a b.", "b a.") and fact.text == "A text."
    found = probes_of(records, {"memorisation": ("begin", "end")})
    pairs = [(each.record.prompt, each.record.answer) for each in found]
    assert pairs == [("It is", " blue"), ("It was ", "red")]
    assert {(each.fact, each.kind, each.record.row) for each in found} == {(0, "memorisation", 7)}


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"begin": ["It is"]}, "no column 'end'"),
        ({"begin": ["It is"], "end": []}, "1 texts in 'begin' but 0 in 'end'"),
        ({"begin": 3, "end": "x"}, "must be text or a list"),
        ({"begin": ["It is"], "end": [" "]}, "is no text"),
    ],
)
def test_bad_columns_are_named_with_their_row(extra, message):
    with pytest.raises(UserError, match=f"f.json, row 7.*{message}"):
        probes_of([Record("", "x", 7, "f.json", extra)], {"memorisation": ("begin", "end")})
