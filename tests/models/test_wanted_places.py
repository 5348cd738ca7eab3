"""States wanted at some places of the rows: those of all places, without what nobody reads."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_decoder import VARIED, assert_trees_close, load, rows, scored, sequences
from test_tiled import tiled_batch

from jaxforget.engine.types import Push
from jaxforget.models import config, decoder
from jaxforget.models.decoder import Compute

EVERYTHING = {"stats": True, "values": (2, 2)}


def some_labelled(case, kind):
    """Three of ten targets labelled, in rows whose attention goes by segments, tiles or places."""
    if kind == "tiles":
        batch = tiled_batch(case, 2)
    else:
        batch = rows(*([s] for s in sequences(case)), length=24)
    chance = np.random.default_rng(0).random(batch.mask.shape) < 0.3
    batch = replace(batch, mask=batch.mask * chance.astype(np.float32), slots=None)
    if kind == "places":
        ends = (batch.segments > 0).sum(axis=1, keepdims=True)
        batch = replace(batch, until=jnp.broadcast_to(ends, batch.mask.shape).astype(jnp.int32))
    most = int(batch.mask.sum(axis=1).max()) + 1
    assert most <= config.FEW_PLACES * batch.mask.shape[1]
    return replace(batch, max_targets=None), replace(batch, max_targets=most)


def at_slots(full, few):
    """What `full` says of all places, at the labelled ones of each row, by row."""
    for row in range(full.mask.shape[0]):
        where = np.flatnonzero(full.mask[row])
        yield row, where, len(where)
        assert np.all(few.mask[row] == (np.arange(few.mask.shape[1]) < len(where)))


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("gemma3_text", "tiles"),
        ("gpt2", "segments"),
        ("phi", "places"),
        pytest.param("phi", "tiles", marks=pytest.mark.slow),
        pytest.param("gemma3_text", "places", marks=pytest.mark.slow),
        pytest.param("gpt2", "tiles", marks=pytest.mark.slow),
    ],
)
def test_states_at_some_places_are_those_of_all(case, kind):
    cfg, params, _ = load(case)
    whole, some = some_labelled(case, kind)
    options = {"stats": True} if kind == "places" else EVERYTHING
    for layer in (0, cfg.layers - 1) if kind == "tiles" else (0,):
        asked = {**options, "residual": layer, "mlp_inner": layer}
        full, few = scored(cfg, params, whole, **asked), scored(cfg, params, some, **asked)
        for row, where, n in at_slots(full, few):
            for column in ("logp", "hidden", "residual", "mlp_inner", "values"):
                every, ours = getattr(full, column), getattr(few, column)
                if every is not None:
                    np.testing.assert_allclose(ours[row, :n], every[row, where], atol=3e-5)
            for every, ours in zip(
                full.stats.__dict__.values(), few.stats.__dict__.values(), strict=True
            ):
                np.testing.assert_allclose(ours[row, :n], every[row, where], atol=1e-3)


@pytest.mark.parametrize(
    ("case", "kind", "remat"),
    [
        ("phi", "tiles", "dots"),
        ("gemma3_text", "segments", "none"),
        pytest.param("gpt2", "places", "dots", marks=pytest.mark.slow),
        pytest.param("gemma3_text", "tiles", "dots", marks=pytest.mark.slow),
        pytest.param("phi", "tiles", "full", marks=pytest.mark.slow),
    ],
)
def test_so_are_their_gradients(case, kind, remat):
    cfg, params, _ = load(case)
    compute = Compute("float32", remat=remat)

    def slope(batch):
        def loss(p):
            scores = decoder.score(p, batch, cfg, compute, residual=0)
            assert scores.residual is not None
            weights = scores.mask[:, :, None] / cfg.hidden_size
            return scores.logp.sum() + jnp.sum(weights * jnp.sin(scores.residual))

        return jax.jit(jax.value_and_grad(loss))(params)

    (right, expected), (value, gradient) = map(slope, some_labelled(case, kind))
    np.testing.assert_allclose(value, right, rtol=1e-6)
    assert_trees_close(gradient, expected, 1e-5)


def test_a_vector_pushed_into_the_last_layer_is_not_left_out():
    cfg, params, _ = load(VARIED[0])
    whole, some = some_labelled(VARIED[0], "segments")
    place = jnp.argmax(whole.mask, axis=1).astype(jnp.int32)
    push = Push(at=place, by=jnp.ones((2, cfg.hidden_size)), layer=-1)
    options = {"push": push, "residual": cfg.layers - 1}
    full, few = scored(cfg, params, whole, **options), scored(cfg, params, some, **options)
    plain = scored(cfg, params, some)
    assert float(jnp.abs(few.logp[:, 0] - plain.logp[:, 0]).min()) > 1e-3
    for row, where, n in at_slots(full, few):
        np.testing.assert_allclose(few.logp[row, :n], full.logp[row, where], atol=1e-5)
        np.testing.assert_allclose(few.residual[row, :n], full.residual[row, where], atol=1e-5)


def feed_forward_rows(case, batch, **options):
    """Rows of the products that go into the feed-forward parts, by what a step of it needs."""
    cfg, params, _ = load(case)
    width = params["layers"]["mlp"]["up"]["w"].shape[-1]

    def wanted(p):
        scores = decoder.score(p, batch, cfg, **options)
        return scores.residual if options else scores.logp

    program = jax.jit(wanted).lower(params).as_text()
    found = re.findall(rf"dot_general.*-> tensor<([\dx]+)x{width}xf32>", program)
    return [np.prod([int(size) for size in shape.split("x")]) for shape in found]


@pytest.mark.parametrize("options", [{}, {"residual": 0}])
def test_the_last_layer_that_is_read_leaves_the_other_places_out(options):
    whole, some = some_labelled("llama", "segments")
    assert some.max_targets is not None
    every, few = whole.mask.size, some.max_targets * whole.mask.shape[0]
    assert set(feed_forward_rows("llama", whole, **options)) == {every}
    assert min(feed_forward_rows("llama", some, **options)) == few < every


def test_of_many_layers_the_last_is_not_taken_from_its_stack(monkeypatch):
    whole, some = some_labelled("llama", "segments")
    monkeypatch.setattr(decoder, "FEW_LAYERS", 1)
    assert set(feed_forward_rows("llama", some)) == {whole.mask.size}
