"""Examples that begin alike: every label once, every shared place as seldom as it fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.data.sets import TokenisedSet
from jaxforget.data.shared_beginnings import alike, pack_shared, row_length, trees
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
    return [
        (batch.positions[row, key], batch.tokens[row, key])
        for key in range(place + 1)
        if place < batch.until[row, key]
    ]


def taken(packed):
    return sum(int((batch.segments > 0).sum()) for batch in packed.batches)


SYSTEM = tuple(range(100, 120))
words = st.lists(st.integers(1, 3), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([(1,), (1, 2), (1, 2, 3), SYSTEM, (*SYSTEM, 1, 2)]), words),
        min_size=1,
        max_size=20,
    ),
    st.integers(29, 60),
    st.integers(1, 3),
    st.sampled_from([(), SYSTEM[::-1]]),
)
def test_every_label_is_found_once_behind_its_own_text_and_no_other(examples, length, rows, system):
    """Also where examples are equal, one begins another, or they share labelled places."""
    tokenised = made([((*system, *question), answer) for question, answer in examples])
    length += len(system)
    owner = np.repeat(np.arange(len(tokenised)), tokenised.label_counts)
    at = np.flatnonzero(tokenised.mask)
    seen = []
    packed = pack_shared(tokenised, rows=rows, length=length)
    for batch, labels, places in zip(*packed, strict=True):
        assert batch.tokens.shape == batch.until.shape == (rows, length)
        assert int(batch.mask.sum(1).max()) <= batch.max_targets
        assert (batch.until[batch.segments == 0] == 0).all()
        row, place = np.nonzero(batch.mask)
        for label, where in zip(labels, places, strict=True):
            begin = int(tokenised.offsets[owner[label]])
            expected = list(enumerate(tokenised.tokens[begin : at[label] + 1]))
            assert visible(batch, row[where], place[where]) == expected
            assert batch.targets[row[where], place[where]] == tokenised.targets[at[label]]
        seen += labels.tolist()
    assert sorted(seen) == list(range(len(owner)))


def test_a_question_and_what_answers_share_are_computed_once():
    question, start = tuple(range(1, 20)), (50, 51, 52)
    answers = [(*start, 60), (*start, 61), (*start, 61, 62), (70,), (70,)]
    tokenised = made([(question, each) for each in answers] + [((9, 9), (1,))])
    packed = pack_shared(tokenised, rows=1, length=64)
    # the question up to its last token, which leads each of two different beginnings, once a
    # target; in the first the third word has two followers, and so has the word 61
    longer, shorter = 18 + 3 + 1 + 1 + 1, 1
    assert taken(packed) == longer + shorter + 2
    (batch,) = packed.batches
    # equal examples share all their labels
    assert int(batch.mask.sum()) == 3 + 1 + 1 + 1 + 1 + 1 and len(packed.labels[0]) == 16


def test_trees_are_divided_where_they_do_not_fit_a_row():
    question = tuple(range(1, 21))
    tokenised = made([(question, (30 + n, n)) for n in range(6)])
    found = alike(tokenised)
    assert found.root == 19 and found.shared.tolist() == [0, 19, 19, 19, 19, 19]
    assert [tree.size for tree in trees(tokenised, found, 64)] == [2] * 6
    ahead = made([*((question, (30 + n, n)) for n in range(6)), ((9, 9), (1,))])
    assert [tree.size for tree in trees(ahead, alike(ahead), 64)] == [19 + 6 * 2, 2]
    assert sorted(tree.size for tree in trees(ahead, alike(ahead), 24)) == [2, 23, 23, 23]
    assert row_length(ahead, alike(ahead)) == 256


def test_what_all_begin_with_is_computed_once_a_row():
    system, questions = tuple(range(10, 40)), [(1, 2), (1, 3), (4, 5, 6)]
    tokenised = made([((*system, *q), (n, n, n)) for n, q in enumerate(questions * 2)])
    assert alike(tokenised).root == 29
    packed = pack_shared(tokenised, rows=1, length=128)
    # the system prompt's last token has several followers; nothing else is worth a tree
    assert taken(packed) == 29 + 4 * 5 + 2 * 6
    # where one example begins otherwise, or there is but one
    other = made([((*system, 1), (2,)), ((9, *system, 1), (2,))])
    assert alike(other).root == 0 == alike(made([(system, (1,))])).root
    # equal examples keep a place of their own
    assert alike(made([(system, (1,))] * 2)).root == 29
    assert taken(pack_shared(made([(system, (1,))] * 2), rows=1, length=64)) == 29 + 2


def test_the_same_words_labelled_otherwise_are_not_shared():
    text = tuple(range(1, 25))
    tokenised = made([(text[:18], text[18:]), (text[:20], text[20:])])
    assert alike(tokenised).shared.tolist() == [0, 17]


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(UserError, match="row 1 .* 7 tokens"):
        pack_shared(made([((1,), (2,)), ((1, 2, 3), (1, 2, 3, 4, 5))]), rows=1, length=6)
