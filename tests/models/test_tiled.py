"""Attention in tiles against attention over whole rows, of which it is an arrangement."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_decoder import VARIED, assert_trees_close, load, loss_and_gradient, scored, sequences

from jaxforget.data.layout import lay, shape_of
from jaxforget.data.sets import TokenisedSet
from jaxforget.models import decoder
from jaxforget.models.decoder import Compute


def tiled_batch(case, rows):
    """The golden sequences and longer ones made of them, without gaps in `rows` rows."""
    found = sequences(case)
    found = [*found, np.concatenate(found)[:30], found[0][:1], np.concatenate(found)[:17]]
    lengths = np.asarray([len(each) for each in found])
    tokens = np.concatenate(found).astype(np.int32)
    made = TokenisedSet(
        tokens=tokens,
        targets=np.roll(tokens, -1),
        mask=np.arange(len(tokens)) % 3 > 0,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        rows=np.arange(len(found)),
        fingerprint="golden",
    )
    ids = np.arange(len(found))
    shape = shape_of(made, [ids], [lengths], rows, 8)
    assert len(shape.tiles) == 4
    return jax.tree.map(jnp.asarray, lay(made, ids, lengths, shape)[0])


@pytest.mark.parametrize(
    ("case", "rows"),
    [
        ("gemma3_text", 1),
        ("phi", 2),
        pytest.param("gemma3_text", 2, marks=pytest.mark.slow),
        pytest.param("gpt2", 2, marks=pytest.mark.slow),
    ],
)
def test_scores_and_gradients_are_those_of_whole_rows(case, rows):
    cfg, params, _ = load(case)
    batch = tiled_batch(case, rows)
    whole = replace(batch, tiles=None)
    expected, scores = scored(cfg, params, whole), scored(cfg, params, batch)
    np.testing.assert_allclose(scores.logp, expected.logp, atol=2e-5)
    right, slope = loss_and_gradient(cfg, params, whole, Compute("float32", remat="none"))
    for remat in ("none", "dots"):
        compute = Compute("float32", remat=remat)
        value, gradient = loss_and_gradient(cfg, params, batch, compute)
        np.testing.assert_allclose(value, right, rtol=1e-6)
        assert_trees_close(gradient, slope, 1e-5)


def test_products_with_the_hessian_are_those_of_whole_rows():
    cfg, params, _ = load(VARIED[0])
    batch = tiled_batch(VARIED[0], 1)

    def product(batch):
        def loss(p):
            return decoder.score(p, batch, cfg, Compute("float32", remat="none")).logp.sum()

        return jax.jit(lambda p: jax.jvp(jax.grad(loss), (p,), (p,))[1])(params)

    assert_trees_close(product(batch), product(replace(batch, tiles=None)), 1e-4)


def test_tiles_and_attention_by_places_exclude_one_another():
    cfg, params, _ = load(VARIED[0])
    batch = tiled_batch(VARIED[0], 1)
    with pytest.raises(ValueError, match="by segments"):
        scored(cfg, params, replace(batch, until=batch.segments))
