"""Norms of values at attention sinks: read from the decoder, and as a regulariser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evals import small
from hypothesis import given
from hypothesis import strategies as st
from methods.small_runs import run

from jaxforget.data.pack import pack_all
from jaxforget.engine.tree import flatten
from jaxforget.models import layers
from jaxforget.objectives import value_norms

pytest_plugins = ["methods.conftest"]
LAYERS, POSITIONS = 2, 3


def manual(lm, tokens):
    """Norms `[positions, layers]` of these tokens alone, layer by layer, float64 sums."""
    cfg, count = lm.config, len(tokens)
    positions = jnp.arange(count)[None]
    x = lm.params["embed"]["w"][jnp.asarray(tokens)][None] * cfg.embed_scale
    mask = layers.attention_mask(positions, jnp.ones((1, count), jnp.int32))
    tables, found = layers.rope_tables(positions, cfg), []
    for index in range(cfg.layers):
        p = jax.tree.map(lambda leaf, i=index: leaf[i], lm.params["layers"])
        rope = layers.select_rope(tables, jnp.int32(0))

        def core(q, k, v):
            found.append(np.sqrt((np.asarray(v, np.float64) ** 2).sum((-2, -1)))[0])
            return layers.attend(q, k, v, mask, cfg), None

        x, *_ = layers.block(p, x, rope, core, cfg)
    return np.stack(found, -1)


@pytest.mark.parametrize(
    ("length", "bound"),
    [
        (64, True),
        (256, False),
        pytest.param(64, False, marks=pytest.mark.slow),
        pytest.param(256, True, marks=pytest.mark.slow),
    ],
)
def test_every_slot_holds_the_norms_of_its_own_example(bound, length):
    lm, some = small.model(), small.tokens(small.records()["forget"])
    for batch in pack_all(some, rows=2, length=length):
        if not bound:
            batch = dataclasses.replace(batch, max_targets=None)
        scores = lm.score(lm.params, batch, values=(LAYERS, POSITIONS))
        shape = (*scores.logp.shape, POSITIONS * LAYERS)
        assert scores.values.shape == shape
        for row, slot in zip(*np.nonzero(np.asarray(scores.mask)), strict=True):
            example = int(batch.example[row][int(scores.segments[row, slot]) - 1])
            start, stop = some.offsets[example : example + 2]
            expected = manual(lm, some.tokens[start : min(stop, start + POSITIONS)])
            found = np.asarray(scores.values[row, slot]).reshape(POSITIONS, LAYERS)
            np.testing.assert_allclose(found[: len(expected)], expected, rtol=2e-4)


def test_nobody_pays_for_what_nobody_reads():
    lm, some = small.model(), small.tokens(small.records()["forget"])
    batch = pack_all(some, rows=2, length=128)[0]
    plain = lm.score(lm.params, batch)
    asked = lm.score(lm.params, batch, values=(1, 1))
    np.testing.assert_array_equal(plain.logp, asked.logp)
    assert plain.values is None and asked.values.shape[-1] == 1


@given(st.integers(0, 50), st.integers(1, 6), st.booleans())
def test_the_regulariser_is_its_formula(seed, count, compared):
    rng = np.random.default_rng(seed)
    norms = rng.uniform(0.1, 3, (4, count)) * rng.integers(0, 2, (4, count))
    start = rng.uniform(0.1, 3, (4, count)) if compared else None
    found = value_norms(jnp.float32(norms), None if start is None else jnp.float32(start))
    for row in range(4):
        there = norms[row] > 0
        gaps = np.abs(norms[row] - start[row]) if compared else norms[row]
        expected = gaps[there].mean() if there.any() else 0.0
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)


def weights(result):
    return {path: np.asarray(leaf) for path, leaf in flatten(result.params).items()}


@pytest.mark.slow
def test_without_poison_and_weight_it_is_plain_unlearning(world, tmp_path):
    plain, _ = run(world, tmp_path / "npo", {"name": "npo", "retain": "kl"})
    bare = {"name": "backdoor", "poison_share": 0, "value_weight": 0}
    mine, _ = run(world, tmp_path / "bare", bare)
    for path, leaf in weights(plain).items():
        np.testing.assert_array_equal(leaf, weights(mine)[path])


def test_the_regulariser_starts_at_the_reference_and_shrinks_norms(world, tmp_path):
    _, held = run(world, tmp_path / "held", {"name": "sink_guard", "positions": 2})
    assert abs(held[0]["value"]) < 1e-5  # the model is its own reference
    small_norms = {"name": "sink_guard", "values": "fixed", "value_weight": 10.0, "layers": 1}
    _, shrunk = run(world, tmp_path / "fixed", small_norms)
    assert 0 < shrunk[-1]["value"] < shrunk[0]["value"]


def test_triggered_copies_are_held_where_they_were(world, tmp_path):
    method = {"name": "backdoor", "poison_share": 0.5, "poisoned_weight": 3.0}
    _, rows = run(world, tmp_path / "run", method)
    assert abs(rows[0]["poisoned"]) < 1e-5 and rows[-1]["poisoned"] > 0
    assert rows[0]["poisoned_tokens"] > 0
