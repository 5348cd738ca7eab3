"""REMIND: variants of a text, the landscape of their losses, and who is told from whom."""

import dataclasses

import jax
import numpy as np
import pytest
from evals import small
from evals.attacks.world import data, knowing

from jaxforget.engine.errors import UserError
from jaxforget.evals.attacks import ATTACKS
from jaxforget.evals.attacks.catalogue import missing
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.attacks.neighbours import nearest_tokens, neighbourhood
from jaxforget.evals.attacks.remind import Landscape, Remind, features, landscape, remind

FEW = Remind(variants=8, folds=3, repeats=2, by="attribute")  # all are about one person


def never_seen():
    return small.records()["retain"]


def test_neighbours_are_the_nearest_by_cosine_that_are_other_words():
    lm = small.model()
    ids = np.arange(40, 52)
    found = nearest_tokens(lm, ids, 3)
    table = np.asarray(lm.params["embed"]["w"], np.float64)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    texts = [lm.tokenizer.decode([i]).strip() for i in range(len(lm.tokenizer))]
    special = set(lm.tokenizer.all_special_ids)
    for token, near in zip(ids, found, strict=True):
        allowed = [
            i for i in range(len(texts)) if i not in special and texts[i] != texts[int(token)]
        ]
        order = sorted(allowed, key=lambda i: -(table[int(token)] @ table[i]))
        np.testing.assert_array_equal(near, order[:3])
    with pytest.raises(UserError, match="no 1000 neighbours"):
        nearest_tokens(lm, ids, 1000)


def test_variants_differ_where_they_were_edited_and_inputs_follow_targets():
    lm = small.model()
    tokenised = tokens_of(lm, data().forget, data())
    near = neighbourhood(lm, tokenised, variants=6, rate=0.3, nearest=2, seed=0)
    count, flat = len(tokenised), near.tokenised
    assert len(flat) == 7 * count and near.rank.tolist() == [1, 2, 1, 2, 1, 2]
    np.testing.assert_array_equal(flat.targets[: len(tokenised.targets)], tokenised.targets)
    np.testing.assert_array_equal(flat.tokens[: len(tokenised.tokens)], tokenised.tokens)
    for index in range(len(flat)):
        part = slice(*flat.offsets[index : index + 2])
        mine = slice(*tokenised.offsets[index % count : index % count + 2])
        np.testing.assert_array_equal(flat.tokens[part][1:], flat.targets[part][:-1])
        assert flat.tokens[part][0] == tokenised.tokens[mine][0]
        np.testing.assert_array_equal(flat.mask[part], tokenised.mask[mine])
        changed = flat.targets[part] != tokenised.targets[mine]
        assert not np.isin(tokenised.targets[mine][changed], lm.tokenizer.all_special_ids).any()
        if index >= count:
            expected = near.edited[index // count - 1, index % count]
            np.testing.assert_allclose(changed.mean(), expected)
    assert 0.2 < near.edited.mean() < 0.35


def test_variants_may_keep_what_is_to_be_said():
    lm = small.model()
    tokenised = tokens_of(lm, data().forget, data())
    choice = {"variants": 3, "rate": 0.5, "nearest": 2, "seed": 0}
    one, other = (
        neighbourhood(lm, tokenised, **choice, keep=keep).tokenised for keep in (False, True)
    )
    np.testing.assert_array_equal(one.tokens, other.tokens)
    true = np.tile(tokenised.targets, 4)
    assert (other.targets[other.mask] == true[other.mask]).all()
    assert (one.targets[one.mask] != true[one.mask]).any()
    np.testing.assert_array_equal(one.targets[~one.mask], other.targets[~other.mask])


def test_the_landscape_is_the_loss_of_every_variant():
    lm, audited = knowing(), data(batch_size=3)
    found = landscape(lm, audited.forget, audited, FEW)
    tokenised = tokens_of(lm, audited.forget, audited)
    np.testing.assert_allclose(found.loss, known(lm, lm.params, tokenised, audited).nll, atol=1e-4)
    assert found.rise.shape == (8, len(tokenised))
    assert found.rise[found.edited > 0].mean() > 0.5  # what is known by heart lies in a pit
    assert (found.rise[found.edited == 0] == 0).all()


def test_features_by_hand():
    rise = np.array([[1.0], [-1.0], [3.0], [5.0]])
    edited, rank = np.array([[0.5], [0.5], [0.0], [1.0]]), np.array([1, 2, 1, 2])
    found = features(Landscape(np.full(1, 1.5), rise, edited, rank))[0]
    # the loss; of the rises mean, deviation, least, quartiles, largest, share below 0, steepness
    # (2 + 2 + 5) / 3, ranks
    expected = [1.5, 2, np.sqrt(5), -1, 0.5, 2, 3.5, 5, 0.25, 3, 2, 2]
    np.testing.assert_allclose(found, expected)


def test_without_replacements_the_shape_tells_nothing():
    audited = data(holdout=never_seen())
    found = remind(knowing(), audited, dataclasses.replace(FEW, rate=0.0))
    assert found.scores["shape_auc"] == 0.5
    assert all(rise == 0 for _, rise in found.curves["landscape_forget"])
    # though the loss itself tells everything
    assert found.scores["loss_auc"] == found.scores["raw_loss_auc"] == found.scores["auc"] == 1
    assert found.scores["gain"] == found.scores["gain_low"] == found.scores["gain_high"] == 0


def test_what_is_known_is_told_by_its_landscape_and_the_fresh_model_less():
    audited = data(holdout=never_seen())
    before = jax.tree.map(np.array, knowing().params)
    found, fresh = (remind(lm, audited, FEW) for lm in (knowing(), small.model()))
    assert found.known > 0.9 > fresh.known
    assert found.scores["steepness_forget"] > found.scores["steepness_holdout"]
    again = remind(knowing(), audited, FEW)
    assert again == found
    jax.tree.map(np.testing.assert_array_equal, before, knowing().params)
    names = {"roc", "landscape_forget", "landscape_holdout"}
    assert found.curves.keys() == names and len(found.curves["landscape_forget"]) == 8


def test_a_holdout_set_is_needed():
    assert missing(ATTACKS["remind"], FEW, data()) == ["holdout"]


def test_two_people_of_each_kind_are_needed():
    audited = data(holdout=never_seen())
    words = "records of two values of 'person'"
    assert missing(ATTACKS["remind"], Remind(), audited) == [f"forget {words}", f"holdout {words}"]
    assert missing(ATTACKS["remind"], Remind(by="no such column"), audited) == []
