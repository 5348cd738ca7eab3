"""Which texts conflict with what is learned, against the explicit formula."""

import dataclasses

import jax
import numpy as np
import pytest
from engine import toy

from jaxforget.edits.compatibility import forgetting_compatibility, forgotten_texts
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten

PARAMS = toy.params(0)
LEARNED = jax.tree.map(lambda a, b: a + 0.3 * b, PARAMS, toy.params(1))
FISHER = jax.tree.map(np.square, toy.params(2))
BATCH = toy.batch(3, rows=5, length=4, examples=1)


def scores(rate=0.1, params=PARAMS, learned=LEARNED, fisher=FISHER, batches=(BATCH,), frozen=None):
    return forgetting_compatibility(
        toy.score, params, learned, fisher, batches, rate=rate, frozen=frozen
    )


def gradient(row):
    """Of the mean NLL of one row, float64 by path, by central differences."""
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[row : row + 1], BATCH)
    wide = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(PARAMS).items()}

    def nll(flat):
        embed, mix, head = (flat[f"{name}/w"] for name in ("embed", "mix", "head"))
        logits = np.tanh(embed[one.tokens] @ mix) @ head.T
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = np.take_along_axis(logp, np.asarray(one.targets)[..., None], -1)[..., 0]
        return -(picked * one.mask).sum() / max(np.asarray(one.mask).sum(), 1)

    found = {}
    for path, leaf in wide.items():
        found[path] = np.zeros_like(leaf)
        for index in np.ndindex(*leaf.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = {**wide, path: leaf.copy()}
                moved[path][index] += step
                sides.append(nll(moved))
            found[path][index] = (sides[0] - sides[1]) / 2e-5
    return found


def squares(point):
    fisher, best = flatten(FISHER), flatten(LEARNED)
    return 0.5 * sum(
        (np.float64(fisher[p]) * (point[p] - np.float64(best[p])) ** 2).sum() for p in point
    )


def test_scores_are_the_explicit_formula_less_its_constant():
    start = {path: np.float64(leaf) for path, leaf in flatten(PARAMS).items()}
    expected = []
    for row in range(5):
        g = gradient(row)
        expected.append(squares({p: start[p] - 0.1 * g[p] for p in start}) - squares(start))
    np.testing.assert_allclose(scores(), expected, rtol=1e-4, atol=1e-5)


def test_without_fisher_information_nothing_conflicts():
    assert not scores(fisher=jax.tree.map(np.zeros_like, FISHER)).any()


def test_a_text_without_gradient_scores_the_constant():
    silent = dataclasses.replace(BATCH, mask=np.zeros_like(BATCH.mask))
    assert not scores(batches=(silent,)).any()


def test_a_text_that_pulls_towards_what_is_learned_scores_lower_than_one_that_pulls_away():
    # what is learned lies along the text's own step
    row = int(np.argmax(BATCH.mask.sum(-1)))
    step = jax.tree.map(lambda g, w: np.float32(w - 0.5 * g), *_trees(gradient(row)))
    away = jax.tree.map(lambda g, w: np.float32(w + 0.5 * g), *_trees(gradient(row)))
    ones = jax.tree.map(np.ones_like, PARAMS)
    near, far = (scores(rate=0.1, learned=each, fisher=ones)[row] for each in (step, away))
    assert near < 0 < far


def _trees(flat):
    found = {path.split("/")[0]: {"w": leaf} for path, leaf in flat.items()}
    return found, PARAMS


def test_order_and_frozen_leaves():
    split = {"mix": PARAMS["mix"]}, {k: PARAMS[k] for k in ("embed", "head")}
    part = {k: {"mix": tree["mix"]} for k, tree in (("learned", LEARNED), ("fisher", FISHER))}
    assert scores(params=split[0], frozen=split[1], **part).shape == (5,)
    halves = [
        jax.tree.map(lambda x, s=s: np.asarray(x)[s], BATCH) for s in (slice(2, 5), slice(0, 2))
    ]
    np.testing.assert_allclose(scores(batches=halves), scores(), rtol=1e-5, atol=1e-7)


def test_faults_are_told():
    with pytest.raises(UserError, match="one example a row"):
        scores(batches=(toy.batch(0),))
    with pytest.raises(UserError, match="there is no example"):
        scores(batches=())
    with pytest.raises(UserError, match="learned and the parameters differ"):
        scores(learned={"embed": PARAMS["embed"]})


@pytest.mark.parametrize(
    "select, share, expected",
    [("highest", 0.5, [1, 3]), ("lowest", 0.25, [2]), ("highest", 1, [0, 1, 2, 3])],
)
def test_the_share_that_is_asked_for_is_chosen(select, share, expected):
    assert forgotten_texts(np.array([0.1, 5.0, -2.0, 3.0]), share, select, 0).tolist() == expected


def test_a_random_choice_is_the_seed_s():
    values = np.arange(20.0)
    first, again, other = (forgotten_texts(values, 0.3, "random", s).tolist() for s in (0, 0, 1))
    assert first == again != other and len(first) == 6
