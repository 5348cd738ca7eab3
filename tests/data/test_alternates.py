"""Random labels of multiple-choice questions."""

import numpy as np
import pytest
from scipy import stats

from jaxforget.data.alternates import random_choices
from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError

CHOICES = ["a", "b", "c", "d"]


def questions(count, **extra):
    return [
        Record(f"q{row}", "a", row, "q.jsonl", {"choices": CHOICES, **extra})
        for row in range(count)
    ]


def test_every_choice_is_as_likely_the_right_one_too():
    drawn = [each.answer for each in random_choices(questions(4000), 0)]
    counts = [drawn.count(choice) for choice in CHOICES]
    assert sum(counts) == 4000 and stats.chisquare(counts).pvalue > 1e-3


def test_labels_are_the_seeds_and_the_rows_alone():
    some = questions(50)
    drawn = random_choices(some, 3)
    assert random_choices(some[20:], 3) == drawn[20:]
    assert [each.answer for each in random_choices(some, 4)] != [each.answer for each in drawn]
    assert [each.prompt for each in drawn] == [each.prompt for each in some]


@pytest.mark.parametrize("choices", [None, ["one"], "abc", ["a", 3], ["a", " "], np.arange(3)])
def test_a_row_without_choices_is_named(choices):
    with pytest.raises(UserError, match=r"row 0 of q.jsonl: .*'choices' that lists two texts"):
        random_choices(questions(1, choices=choices), 0)
