"""Attention in tiles against attention over whole rows, of which it is an arrangement."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_decoder import VARIED, assert_trees_close, load, loss_and_gradient, scored, sequences

from jaxforget.data.layout import lay, shape_of
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.types import Tiles
from jaxforget.models import decoder, layers, tiled
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


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("case", VARIED)
def test_scores_and_gradients_are_those_of_whole_rows(case, rows):
    cfg, params, _ = load(case)
    batch = tiled_batch(case, rows)
    whole = replace(batch, tiles=None)
    expected, scores = scored(cfg, params, whole), scored(cfg, params, batch)
    np.testing.assert_allclose(scores.logp, expected.logp, atol=2e-5)
    for remat in ("none", "dots"):
        compute = Compute("float32", remat=remat)
        value, gradient = loss_and_gradient(cfg, params, batch, compute)
        right, slope = loss_and_gradient(cfg, params, whole, compute)
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


def test_tiles_of_places_see_what_until_says():
    """A beginning and two continuations of it, each in a tile beside the beginning alone."""
    until = jnp.asarray([[6, 6, 4, 4, 6, 6, 0, 0]], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 3, 2, 3, 0, 0]], jnp.int32)
    segments = jnp.ones_like(positions)
    queries = [[[0, 1], [2, 3], [4, 5]]]
    keys = [[[0, 1, -1, -1], [0, 1, 2, 3], [0, 1, 4, 5]]]
    back = [[0, 1, 2, 3, 4, 5, 0, 0]]
    tiles = Tiles((jnp.asarray(queries),), (jnp.asarray(keys),), jnp.asarray(back))
    q, k, v = (
        jnp.asarray(np.random.default_rng(i).normal(size=(1, 8, heads, 4)), jnp.float32)
        for i, heads in enumerate((4, 2, 2))
    )
    cfg, _, _ = load(VARIED[0])
    for window in (layers.UNLIMITED, 2):
        mask = layers.attention_mask(positions, segments, until=until, window=window)
        masks = tiled.tile_masks(tiles, positions, segments, until=until, window=window)
        y = tiled.attend_tiles(tiles, q, k, v, masks, cfg)
        expected = layers.attend(q, k, v, mask, cfg)
        np.testing.assert_allclose(y[:, :6], expected[:, :6], rtol=1e-5, atol=1e-6)
        assert np.isfinite(y).all()
