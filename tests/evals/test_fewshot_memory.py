"""Recognition, recall and how long they last, by hand."""

import numpy as np
import pytest
from evals import small

from jaxforget.engine.errors import UserError
from jaxforget.evals import fewshot_memory as memory


def test_recognition_is_a_strictly_smaller_loss_and_ties_are_errors():
    found = memory.recognition(np.asarray([1.0, 2.0, 3.0]), np.asarray([1.5, 2.0, 2.0]))
    assert found.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="differ in length"):
        memory.recognition(np.ones(2), np.ones(3))


def test_recall_counts_the_second_half_alone():
    texts = [np.asarray([1, 2, 3, 4, 5]), np.asarray([1, 2, 3, 4]), np.asarray([7, 8])]
    # halves of 2, 2 and 1 tokens are given
    written = [np.asarray([3, 4, 5]), np.asarray([3, 9]), np.asarray([], np.int32)]
    found = memory.recall(texts, written)
    assert found["exact"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(found["tokens"], [1, 0.5, 0])
    with pytest.raises(UserError, match="3 texts but 1"):
        memory.recall(texts, written[:1])


def test_words_of_a_perfect_recall_overlap_fully():
    tokenizer = small.tokenizer()
    ids = [np.asarray(tokenizer("A painter was born here.")["input_ids"])]
    rest = [ids[0][memory.cue_length(len(ids[0])) :]]
    assert memory.recall(ids, rest, tokenizer)["rougeL"] == pytest.approx([1.0])
    assert memory.recall(ids, [rest[0] * 0 + rest[0][-1]], tokenizer)["rougeL"][0] < 1


def test_continuations_are_greedy_and_as_long_as_the_rest():
    lm = small.model()
    texts = [np.asarray([5, 6, 7, 8, 9]), np.asarray([9, 8, 7])]
    found = memory.continuations(lm, lm.params, texts, batch_size=2)
    assert [len(each) for each in found] == [3, 2]
    for text, ours in zip(texts, found, strict=True):
        cue = text[: len(text) // 2].astype(np.int32)
        (alone,) = lm.generate(lm.params, [cue], max_new_tokens=len(ours), eos_ids=())
        np.testing.assert_array_equal(ours, alone)


def test_shares_left_compare_measures_with_other_floors():
    np.testing.assert_allclose(
        memory.share_left(np.asarray([0.9, 0.7, 0.5]), 0.5, 0.9), [1, 0.5, 0]
    )
    assert np.isnan(memory.share_left(np.ones(2), 0.5, 0.5)).all()
    shares = np.asarray([1.0, 0.6, 0.5, 0.4, 0.7])
    assert memory.first_below(np.asarray([0, 1, 2, 5, 9]), shares) == 5
    assert memory.first_below(np.arange(3), np.ones(3)) == np.inf
