import logging

import numpy as np
import pytest

from jaxforget.data.records import Record, overlap, refuse_overlap, variants, warn_of_repeats
from jaxforget.engine.errors import UserError


def record(prompt, answer, row=0, source="a.json", **extra):
    return Record(prompt, answer, row, source, extra)


def test_variants_keep_order_and_say_whose_they_are():
    records = [
        record("p0", "a0", 7, perturbed_answer=["x", "y"], paraphrased_question="P0"),
        record("p1", "a1", 9, perturbed_answer="z", paraphrased_question="P1"),
    ]
    expanded, owner = variants(records, "perturbed_answer")
    assert [(each.prompt, each.answer, each.row) for each in expanded] == [
        ("p0", "x", 7),
        ("p0", "y", 7),
        ("p1", "z", 9),
    ]
    np.testing.assert_array_equal(owner, [0, 0, 1])
    assert owner.dtype == np.int64
    asked, _ = variants(records, "paraphrased_question")
    assert [(each.prompt, each.answer) for each in asked] == [("P0", "a0"), ("P1", "a1")]


@pytest.mark.parametrize("value", [[], 3, ["ok", " "], ["ok", None], {"a": "b"}])
def test_variants_refuse_what_is_not_text_by_row(value):
    with pytest.raises(UserError, match="row 4 of a.json.*perturbed_answer"):
        variants([record("p", "a", 4, perturbed_answer=value)], "perturbed_answer")


def test_variants_name_the_columns_there_are():
    with pytest.raises(UserError, match="row 0 of a.json.*Further columns of this row: option1"):
        variants([record("p", "a", option1="x")], "paraphrased_answer")


def test_overlap_needs_both_prompt_and_answer_equal():
    forget = [record("p", "a", 0), record("p", "b", 1), record("q", "a", 2)]
    retain = [record("p", "b", 5, "r.json"), record("x", "a", 6, "r.json")]
    assert [(a.row, b.row) for a, b in overlap(forget, retain)] == [(1, 5)]
    with pytest.raises(UserError, match="1 of 3 rows.*row 1 of a.json = row 5 of r.json"):
        refuse_overlap(forget, retain)
    refuse_overlap(forget[:1], retain)


def test_repeats_are_counted_in_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert warn_of_repeats([record("p", "a"), record("p", "a", 1), record("p", "b", 2)]) == 1
    assert len(caplog.records) == 1 and "1 of 3 rows repeat" in caplog.text
    assert warn_of_repeats([record("p", "a")]) == 0


def test_records_are_hashable_and_frozen():
    one = record("p", "a", perturbed_answer=["x"])
    assert len({one, one}) == 1
    with pytest.raises(AttributeError):
        one.prompt = "q"
