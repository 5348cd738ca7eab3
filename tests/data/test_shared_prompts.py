"""Answers that share their question: every example once, every question as seldom as it fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.data.sets import TokenisedSet
from jaxforget.data.shared_prompts import common_tokens, families, pack_shared, row_length
from jaxforget.engine.errors import UserError


def made(examples):
    """A set of (prompt tokens, answer tokens); targets follow inputs, answers are labelled."""
    tokens, targets, mask, lengths = [], [], [], []
    for prompt, answer in examples:
        text = [*prompt, *answer]
        tokens += text[:-1]
        targets += text[1:]
        mask += [False] * (len(prompt) - 1) + [True] * (len(text) - len(prompt))
        lengths.append(len(text) - 1)
    return TokenisedSet(
        np.asarray(tokens, np.int32),
        np.asarray(targets, np.int32),
        np.asarray(mask, bool),
        np.cumsum([0, *lengths]),
        np.arange(len(examples)),
        "x",
    )


def visible(batch, row, place):
    """Tokens that a place sees, by position, as attention's rule says."""
    keys = [
        (batch.positions[row, key], batch.tokens[row, key])
        for key in range(batch.tokens.shape[1])
        if key < batch.common
        or batch.segments[row, key] in (batch.segments[row, place], batch.parents[row, place])
        if batch.positions[row, key] <= batch.positions[row, place]
    ]
    return keys


QUESTIONS = ((1,), (1, 2), (1, 2, 3), (4, 4, 4, 4))
words = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([(1,), (1, 2), (1, 2, 3), (4, 4, 4, 4)]), words), min_size=1
    ),
    st.integers(12, 40),
    st.integers(1, 3),
    st.sampled_from([0, 5, 20]),
)
def test_every_labelled_place_sees_its_own_text_and_nothing_else(examples, length, rows, system):
    """Also behind a system prompt, which stands once at the head of each row if it is long."""
    ahead, length = tuple(range(100, 100 + system)), length + system
    tokenised = made([((*ahead, *question), answer) for question, answer in examples])
    seen = {index: [] for index in range(len(tokenised))}
    for batch in pack_shared(tokenised, rows=rows, length=length):
        assert batch.tokens.shape == (rows, length)
        assert int((batch.mask.sum(1)).max()) <= batch.max_targets
        for row, place in zip(*np.nonzero(batch.mask), strict=True):
            example = batch.example[row, batch.segments[row, place] - 1]
            span = slice(*tokenised.offsets[example : example + 2])
            at = int(batch.positions[row, place])
            expected = list(enumerate(tokenised.tokens[span][: at + 1]))
            assert sorted(visible(batch, row, place)) == expected
            assert batch.targets[row, place] == tokenised.targets[span][at]
            seen[example].append(at)
    for example, places in seen.items():
        span = slice(*tokenised.offsets[example : example + 2])
        assert sorted(places) == np.flatnonzero(tokenised.mask[span]).tolist()
        assert places == sorted(places)


def test_a_question_is_computed_once_where_its_answers_fit():
    question = (1, 2, 3, 4, 5)
    tokenised = made([(question, (n, n)) for n in range(6)] + [((9, 9), (1,))])
    (family, alone) = sorted(families(tokenised, 64), key=lambda each: -len(each.examples))
    assert family.shared == 4 and family.size == 4 + 6 * 2
    assert alone.shared == 0 and alone.size == 2
    (batch,) = pack_shared(tokenised, rows=1, length=64)
    assert int((batch.segments > 0).sum()) == family.size + alone.size
    # two answers fit a row of 8 beside their question
    assert sorted(each.size for each in families(tokenised, 8)) == [2, 8, 8, 8]
    assert row_length(tokenised) == 256


def test_a_system_prompt_is_computed_once_a_row():
    system, questions = tuple(range(10, 40)), [(1, 2), (1, 3), (4, 5, 6)]
    tokenised = made([((*system, *q), (n, n, n)) for n, q in enumerate(questions * 2)])
    assert common_tokens(tokenised) == 30
    (batch,) = pack_shared(tokenised, rows=1, length=128)
    assert batch.common == 30
    # the first token of four questions, two of the third; each answer is led by its last
    assert int((batch.segments > 0).sum()) == 30 + 1 + 2 + 6 * 3
    # where one example begins otherwise, or the label begins before the sixteenth token
    other = made([((*system, 1), (2,)), ((9, *system, 1), (2,))])
    assert common_tokens(other) == 0 == common_tokens(made([(system[:10], (1,))] * 2))


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(UserError, match="row 1 .* 7 tokens"):
        pack_shared(made([((1,), (2,)), ((1, 2, 3), (1, 2, 3, 4, 5))]), rows=1, length=6)
