"""Importances against squared finite differences in float64, and what they do not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives import toy_lm as toy

from jaxforget.edits import importance
from jaxforget.engine.errors import UserError

SOME, PARAMS = toy.examples(1, 6), toy.params(0)


def slope(some):
    """Gradient of the mean NLL over the labelled targets of some examples, float64."""
    return toy.differences(lambda p: toy.nll64(p, some), toy.float64(PARAMS))


def mean(trees):
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)


def close(ours, theirs, tolerance=2e-4):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=1e-6), ours, theirs
    )


def run(batches, estimator):
    return importance(toy.score, PARAMS, batches, estimator=estimator)


def test_per_example_is_the_mean_square_of_each_examples_gradient():
    want = mean([jax.tree.map(np.square, slope([each])) for each in SOME])
    close(run([toy.pack(SOME, 6, 1)], "per_example"), want)
    halves = [toy.pack(SOME[:3], 3, 1, 4), toy.pack(SOME[3:], 3, 1, 4)]
    close(run(halves, "per_example"), want)


@pytest.mark.parametrize(
    ("estimator", "shape"), [("squared_batch", np.square), ("absolute_batch", np.abs)]
)
def test_batches_are_averaged_after_their_gradients_are_shaped(estimator, shape):
    batches = [toy.pack(SOME[:3], 2, 3, 8), toy.pack(SOME[3:], 2, 3, 8)]
    want = mean([jax.tree.map(shape, slope(part)) for part in (SOME[:3], SOME[3:])])
    close(run(batches, estimator), want)


def test_batches_of_one_example_make_both_squares_equal():
    ones = [toy.pack([each], 1, 1, 4) for each in SOME]
    close(run(ones, "squared_batch"), run(ones, "per_example"), 1e-5)


def test_order_matters_only_through_what_shares_a_batch():
    pairs = [SOME[0:2], SOME[2:4], SOME[4:6]]
    batched = [toy.pack(pair, 1, 2, 8) for pair in pairs]
    close(run(batched[::-1], "squared_batch"), run(batched, "squared_batch"), 1e-5)
    others = [[SOME[0], SOME[2]], [SOME[1], SOME[4]], [SOME[3], SOME[5]]]
    moved = run([toy.pack(pair, 1, 2, 8) for pair in others], "squared_batch")
    gaps = jax.tree.map(
        lambda a, b: np.abs(a - b).max() / np.abs(b).max(), moved, run(batched, "squared_batch")
    )
    assert max(jax.tree.leaves(gaps)) > 0.01
    ones = [toy.pack([each], 1, 1, 4) for each in SOME]
    close(run(ones[::-1], "per_example"), run(ones, "per_example"), 1e-5)


def test_rows_without_examples_do_not_count():
    close(run([toy.pack(SOME, 9, 1)], "per_example"), run([toy.pack(SOME, 6, 1)], "per_example"))


def test_it_is_never_negative_and_float32():
    found = importance(
        toy.score, jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS), [toy.pack(SOME, 2, 3)]
    )
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype == jnp.float32 and (leaf >= 0).all()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="no batch"):
        run([], "squared_batch")
    with pytest.raises(UserError, match="Did you mean 'squared_batch'"):
        run([], "squared_batches")
    with pytest.raises(UserError, match="one example a row"):
        run([toy.pack(SOME, 2, 3)], "per_example")
