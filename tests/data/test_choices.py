"""Multiple-choice rows of many layouts, and those that cannot be understood."""

import json

import pytest

from jaxforget.data.choices import ChoiceData, correct_ones, load_questions
from jaxforget.engine.errors import UserError

ASKED = {"question": "Who?", "choices": ["Ada", "Bob", "Cyd"], "answer": 1}


@pytest.fixture
def read(tmp_path):
    def reading(*rows, **options):
        file = tmp_path / "q.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_questions(ChoiceData(str(file), **options))

    return reading


@pytest.mark.parametrize(
    "row",
    [
        ASKED,
        {**ASKED, "answer": "B"},
        {**ASKED, "answer": "(B)."},
        {**ASKED, "answer": "1"},
        {**ASKED, "answer": "Bob"},
        {**ASKED, "answer": [0, 1, 0]},
        {"prompt": "Who?", "options": ["Ada", "Bob", "Cyd"], "target": 1},
        {"query": "Who?", "A": "Ada", "B": "Bob", "C": "Cyd", "label": "B"},
        {
            "question": "Who?",
            "choices": {"text": ["Ada", "Bob", "Cyd"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
    ],
)
def test_layouts_in_use_are_understood_by_themselves(read, row):
    (found,) = read(row)
    assert found.text == "Who?" and found.choices == ("Ada", "Bob", "Cyd")
    assert found.correct == (1,) and found.row == 0


def test_columns_can_be_named_and_rows_chosen(read):
    row = {"frage": "Wer?", "eins": "Ada", "zwei": "Bob", "gold": "A", "topic": "t"}
    columns = {"question": "frage", "choices": ("eins", "zwei"), "answer": "gold"}
    (found,) = read(row, row, columns=columns, rows="1:", header="Choose.\n")
    assert (found.text, found.choices, found.correct) == ("Wer?", ("Ada", "Bob"), (0,))
    assert found.context == "Choose.\n" and found.row == 1 and found.extra == {"topic": "t"}


def test_several_answers_may_be_right():
    assert correct_ones([1, 0, 1], "abc", None, "here") == (0, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ASKED, "answer": 3}, "line 1: 'answer' is 3; allowed is 0 to 2"),
        ({**ASKED, "answer": True}, "names none of"),
        ({**ASKED, "answer": "Dan"}, "names none of the 3 choices"),
        ({**ASKED, "answer": [1, 1, 1]}, "marks must be 0 or 1"),
        ({**ASKED, "answer": [1, 0]}, "marks must be 0 or 1"),
        ({**ASKED, "choices": ["B", "A"], "answer": "A"}, "may name several of"),
        ({**ASKED, "choices": ["1", "0"], "answer": "1"}, "may name several of"),
        ({**ASKED, "choices": ["Ada"]}, "two or more non-blank texts"),
        ({**ASKED, "choices": "Ada"}, "two or more non-blank texts"),
        ({**ASKED, "question": " "}, "'question' is blank"),
        ({"question": "q", "answer": 0}, "no column for the choices"),
        ({"question": "q", "choices": ["a", "b"]}, "no column for the answer"),
    ],
)
def test_rows_that_mean_nothing_or_two_things_are_refused(read, row, message):
    with pytest.raises(UserError, match=message):
        read(row)


def test_a_misspelt_column_is_named(read):
    with pytest.raises(UserError, match="columns.answer is 'anser'. Did you mean 'answer'"):
        read(ASKED, columns={"answer": "anser"})
    with pytest.raises(UserError, match="columns.question must be one column"):
        read(ASKED, columns={"question": ("question", "answer")})
