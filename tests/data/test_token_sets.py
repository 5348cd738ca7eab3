"""Sequences around a token: what they say, and where they are labelled."""

import pytest

from jaxforget.data.alternates import REFUSALS, refusals_by_prompt
from jaxforget.data.fictitious_model import language, train_tokenizer
from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.data.token_sets import token_questions, token_refusals
from jaxforget.data.tokenise import prompt_ids
from jaxforget.engine.errors import UserError

TOKEN = 500
RECORDS = [Record("Who is Ada?", "A poet.", 4, "f"), Record("Where was she born?", "Here.", 7, "f")]
FORMS = [Template(), Template(kind="none"), Template(kind="chat")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(language()[:80], 320)


def example(made, index):
    span = slice(*made.offsets[index : index + 2])
    return made.tokens[span].tolist(), made.targets[span].tolist(), made.mask[span].tolist()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_a_refusal_stands_between_two_tokens_and_only_it_and_the_second_are_learned(
    tokenizer, form
):
    made = token_refusals(RECORDS, tokenizer, [form], TOKEN, max_length=64)
    assert made.rows.tolist() == [4, 7]
    for index, (record, prompt) in enumerate(
        zip(RECORDS, prompt_ids(RECORDS, tokenizer, form, 64), strict=True)
    ):
        tokens, targets, labels = example(made, index)
        n = len(prompt)
        assert tokens[:n] == prompt.tolist() and tokens[n] == TOKEN == targets[-1]
        assert tokens[1:] == targets[:-1]
        learned = [target for target, label in zip(targets, labels, strict=True) if label]
        assert tokenizer.decode(learned[:-1]).strip() == record.answer and learned[-1] == TOKEN
        assert labels == [False] * n + [True] * (len(tokens) - n)


def test_several_forms_follow_each_other(tokenizer):
    made = token_refusals(RECORDS, tokenizer, FORMS[:2], TOKEN, max_length=64)
    alone = [token_refusals(RECORDS, tokenizer, [f], TOKEN, max_length=64) for f in FORMS[:2]]
    assert [example(made, i) for i in range(4)] == [
        example(one, i) for one in alone for i in range(2)
    ]
    assert made.fingerprint not in {one.fingerprint for one in alone}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_a_question_is_labelled_where_its_answer_begins_and_at_its_end(tokenizer, form):
    made = token_questions(RECORDS, tokenizer, form, TOKEN, neutral=" is a", max_length=64)
    tail = tokenizer(" is a", add_special_tokens=False)["input_ids"]
    for index, prompt in enumerate(prompt_ids(RECORDS, tokenizer, form, 64)):
        tokens, targets, labels = example(made, index)
        assert tokens == [*prompt.tolist(), *tail]
        places = [at for at, label in enumerate(labels) if label]
        assert places == [len(prompt) - 1, len(tokens) - 1]
        assert [targets[at] for at in places] == [TOKEN, TOKEN]


def test_equal_questions_are_refused_in_equal_words_wherever_they_stand():
    records = [Record(f"Question {i}?", "a", i, "f") for i in range(200)]
    made = refusals_by_prompt(records)
    moved = refusals_by_prompt([Record(r.prompt, "b", r.row + 9, "g") for r in records])
    assert [r.answer for r in made] == [r.answer for r in moved]
    assert {r.answer for r in made} == set(REFUSALS)
    assert [r.prompt for r in made] == [r.prompt for r in records]


def test_what_cannot_be_asked_is_refused_by_row(tokenizer):
    bare = [*RECORDS, Record("", "A text.", 9, "f")]
    for make in (
        lambda r, n: token_refusals(r, tokenizer, [Template()], TOKEN, max_length=n),
        lambda r, n: token_questions(
            r, tokenizer, Template(), TOKEN, neutral=" is a", max_length=n
        ),
    ):
        with pytest.raises(UserError, match="row 9 of f: asks nothing"):
            make(bare, 64)
        with pytest.raises(UserError, match="row 4 of f: .* more than max_length 8"):
            make(RECORDS, 8)
        with pytest.raises(UserError, match="there are no records"):
            make([], 64)
    with pytest.raises(UserError, match="have no token"):
        token_questions(RECORDS, tokenizer, Template(), TOKEN, neutral="", max_length=64)
