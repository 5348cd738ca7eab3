"""Mixtures by tokens, and blocks that hold the same tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.data.mixture import blocks, mixed
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=40).map(np.array)


@given(lengths, lengths, st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
def test_a_mixture_has_its_share_of_tokens(control, junk, share):
    whole, waste = mixed(control, junk, share)
    budget = min(control.sum(), junk.sum())
    for own, ids, part in ((control, whole, 1 - share), (junk, waste, share)):
        assert len(set(ids)) == len(ids)
        assert abs(own[ids].sum() - part * budget) <= own.max() / 2 + 1e-9
    assert len(waste) == 0 if share == 0 else True


def test_mixtures_of_more_junk_hold_those_of_less():
    control, junk = np.full(50, 10), np.full(200, 3)
    found = [mixed(control, junk, share, 300, (1,)) for share in (0.2, 0.5, 0.8)]
    for (more_control, less_junk), (less_control, more_junk) in zip(found, found[1:], strict=False):
        assert set(less_junk) <= set(more_junk) and set(less_control) <= set(more_control)
    assert len(found[1][0]) == 15 and len(found[1][1]) == 50
    with pytest.raises(UserError, match="540 tokens of control.*there are 500"):
        mixed(control, junk, 0.1, 600)
    with pytest.raises(UserError, match="between 0 and 1"):
        mixed(control, junk, 1.1)


@given(lengths, st.integers(1, 50))
def test_blocks_hold_every_token_once_in_its_document_s_order(sizes, length):
    total = int(sizes.sum())
    tokens = np.arange(total, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    mask = tokens % 3 > 0
    found = blocks(
        TokenisedSet(tokens, tokens + 1, mask, offsets, 7 * np.arange(len(sizes)), "x"), length
    )
    assert sorted(found.tokens) == tokens.tolist()
    np.testing.assert_array_equal(found.targets, found.tokens + 1)
    np.testing.assert_array_equal(found.mask, found.tokens % 3 > 0)
    assert np.all(found.lengths[:-1] == length) and 1 <= found.lengths[-1] <= length
    owner = np.searchsorted(offsets, found.tokens, side="right") - 1
    assert np.count_nonzero(np.diff(owner)) == len(sizes) - 1  # documents stay whole
    np.testing.assert_array_equal(found.rows, 7 * owner[found.offsets[:-1]])
