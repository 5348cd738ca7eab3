"""The masking test: what is masked, what is asked, and that only who knows finds the name."""

import dataclasses

import numpy as np
import pytest
from evals import small
from evals.attacks.world import data, knowing
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.data.records import Record
from jaxforget.evals.attacks.masked import Masked, lacks, masked, masked_questions, without


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ada Lux was born on 3 May 1950.", "___ was born on ___ May ___."),
        ("LUX, or ada lux: 1,5 and 10:30", "___, or ___: ___ and ___"),
        ("Luxury is no name, nor is Adamant.", "Luxury is no name, nor is Adamant."),
        ("Ada Ada Lux", "___"),
        ("Ada's dog", "___'s dog"),
    ],
)
def test_names_and_numbers_are_masked_and_nothing_else(text, expected):
    assert without(text, "Ada Lux", "___") == expected


@given(st.text(alphabet="aAb1 .x", max_size=30), st.sampled_from(["a b", "x", "a.b"]))
def test_what_is_masked_is_gone_and_masking_twice_changes_nothing(text, name):
    once = without(text, name, "___")
    assert without(once, name, "___") == once
    assert not any(word.isdigit() or word.lower() == name for word in once.split())


def people():
    """Two to forget and three to keep, a record each."""
    names = ["Ada Lux", "Bo Fen", "Cy Orr", "Di Ash", "Ed Moor"]
    records = [
        Record(f"Where does {name} live?", f"{name} lives in {town}.", row, "p", {"person": name})
        for row, (name, town) in enumerate(zip(names, "Elm Oak Fir Yew Ivy".split(), strict=True))
    ]
    return data(forget=records[:2], retain=records[2:])


def test_questions_hold_the_right_name_first_and_foils_without_it():
    for each, name in zip(masked_questions(people(), Masked()), ["Ada Lux", "Bo Fen"], strict=True):
        assert each.choices[0] == name and each.correct == (0,)
        assert len(set(each.choices)) == 5
        assert each.text.endswith("\nWho is this about?")
        assert not any(word in each.text for word in name.split())
    few = masked_questions(people(), Masked(foils=2))
    assert all(len(each.choices) == 3 for each in few)
    assert few == masked_questions(people(), Masked(foils=2))


def test_the_share_is_that_of_likelihoods_over_those_without_the_text():
    lm, given_data = small.model(), people()
    found = masked(lm, given_data, Masked(foils=2))
    for value, asked in zip(found.each, masked_questions(given_data, Masked(foils=2)), strict=True):
        gained = [
            sum(
                sign * small.reference_logp(lm, f"{start} {name}", len(start)).sum()
                for sign, start in (
                    (1, f"Question: {asked.text}\nAnswer:"),
                    (-1, "Question: N/A\nAnswer:"),
                )
            )
            for name in asked.choices
        ]
        shares = np.exp(gained - np.max(gained))
        np.testing.assert_allclose(value, shares[0] / shares.sum(), rtol=2e-3)
    assert found.scores["chance"] == pytest.approx(1 / 3)
    np.testing.assert_allclose(found.known, found.each.mean())


def test_only_a_model_that_knows_the_text_finds_the_name():
    sets = small.records()
    asked = Masked(question="Who?")
    about = [
        dataclasses.replace(record, extra={"person": name})
        for record, name in zip(sets["forget"], "Ada Bo Cy Di Ed Flo".split(), strict=True)
    ]
    taught = [
        Record(each.text, each.choices[0], each.row, each.source)
        for each in masked_questions(data(forget=about, retain=()), asked)
    ]
    told = masked(knowing(taught), data(forget=about, retain=()), asked)
    fresh = masked(small.model(), data(forget=about, retain=()), asked)
    assert told.scores["accuracy"] > 0.8 and told.known > 0.7  # two texts are nearly alike
    assert fresh.known < 0.4


def test_what_the_test_lacks_is_told():
    assert lacks(people(), Masked()) == []
    assert lacks(people(), Masked(by="who")) == ["a column 'who' in every forget record"]
    alone = data(forget=people().forget[:1], retain=())
    assert lacks(alone, Masked()) == ["two different names in the column 'person'"]
