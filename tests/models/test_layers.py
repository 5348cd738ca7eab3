"""Parts of the block against float64 NumPy written from the papers' formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.models import layers
from jaxforget.models.config import DecoderConfig
from jaxforget.models.rope import Rope

BASE = DecoderConfig(
    family="llama",
    vocab_size=16,
    hidden_size=12,
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=4,
    mlp_size=10,
    max_positions=32,
    attn_scale=0.5,
    ropes=(Rope(100.0, 4),),
    layer_rope=(0, 0),
    layer_window=(0, 3),
)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_linear_adds_bias_and_adapter():
    x, w, b = random(0, 2, 3, 5), random(1, 5, 4), random(2, 4)
    a, up = random(3, 5, 2), random(4, 2, 4)
    p = {"w": w, "b": b, "lora_a": a, "lora_b": up, "lora_scale": np.float32(0.5)}
    y = layers.linear(jnp.asarray(x), jax.tree.map(jnp.asarray, p))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y, wide @ w + b + 0.5 * (wide @ a @ up), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["rms", "rms_plus_one", "layer"])
def test_norm_equals_its_formula(kind):
    cfg = dataclasses.replace(BASE, norm=kind, norm_eps=1e-3)
    x, scale, bias = random(0, 2, 3, 8), random(1, 8), random(2, 8)
    p = {"scale": jnp.asarray(scale)} | ({"bias": jnp.asarray(bias)} if kind == "layer" else {})
    wide = x.astype(np.float64)
    if kind == "layer":
        wide = wide - wide.mean(-1, keepdims=True)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3)
    expected = expected * (1.0 + scale if kind == "rms_plus_one" else scale)
    expected = expected + bias if kind == "layer" else expected
    np.testing.assert_allclose(layers.norm(jnp.asarray(x), p, cfg), expected, rtol=2e-5, atol=1e-6)


def test_rotation_turns_each_pair_by_its_angle_and_leaves_the_rest():
    cfg = dataclasses.replace(BASE, head_dim=10, ropes=(Rope(100.0, 6, scale=1.5),))
    x, positions = random(0, 1, 5, 2, 10), np.array([[0, 3, 7, 7, 31]], np.int32)
    rope = layers.select_rope(layers.rope_tables(jnp.asarray(positions), cfg), jnp.int32(0))
    pairs = x[..., :3].astype(np.float64) + 1j * x[..., 3:6]
    angle = positions[..., None] * 100.0 ** (-np.arange(3) / 3)
    turned = pairs * 1.5 * np.exp(1j * angle)[:, :, None]
    expected = np.concatenate([turned.real, turned.imag, x[..., 6:]], -1)
    np.testing.assert_allclose(layers.rotate(jnp.asarray(x), rope), expected, rtol=1e-4, atol=1e-5)


def test_llama3_frequencies_equal_the_published_case_distinction():
    rope = Rope(500000.0, 64, "llama3", factor=8.0, low=1.0, high=4.0, original=8192)
    expected = []
    for i in range(32):
        frequency = 500000.0 ** (-2 * i / 64)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(frequency)
        elif wavelength > 8192 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    np.testing.assert_allclose(rope.frequencies(), expected, rtol=1e-6)


def oracle_attention(q, k, v, mask, scale, cap):
    rows, length, heads, _ = q.shape
    share = heads // k.shape[2]
    out = np.zeros(q.shape)
    for b in range(rows):
        for h in range(heads):
            logits = scale * q[b, :, h].astype(np.float64) @ k[b, :, h // share].T
            logits = logits if cap is None else cap * np.tanh(logits / cap)
            for i in range(length):
                seen = np.flatnonzero(mask[b, i])
                weights = np.exp(logits[i, seen] - logits[i, seen].max(initial=-np.inf))
                out[b, i, h] = weights / max(weights.sum(), 1e-300) @ v[b, seen, h // share]
    return out


@pytest.mark.parametrize("cap", [None, 0.7])
def test_attention_equals_its_formula_with_grouped_heads(cap):
    cfg = dataclasses.replace(BASE, attn_softcap=cap)
    q, k, v = random(0, 2, 5, 6, 4), random(1, 2, 7, 2, 4), random(2, 2, 7, 2, 4)
    mask = np.random.default_rng(3).random((2, 5, 7)) < 0.5
    mask[:, :, 0] = True
    y = layers.attend(*(jnp.asarray(a) for a in (q, k, v, mask)), cfg)
    np.testing.assert_allclose(y, oracle_attention(q, k, v, mask, 0.5, cap), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "longest"),
    [pytest.param(256, 512, marks=pytest.mark.slow), (300, 512), (700, 100)],
)
def test_long_rows_attend_in_stretches_as_their_formula_says(length, longest, monkeypatch):
    """Three stretches, the last of which grows from the first; values and gradients."""
    monkeypatch.setattr(layers, "_LONG", longest)  # of a stretch, where more than four are made
    cfg = BASE
    q, k, v = random(0, 1, length, 4, 4), random(1, 1, length, 2, 4), random(2, 1, length, 2, 4)
    first, second, end = length // 5, length // 2, length - 3
    place = np.arange(length)
    until = np.select([place < first, place < second, place < end], [end, second, end], 0)[None]
    segments = (place < end).astype(np.int32)[None]
    positions = np.where(place < second, place, place - second + first)[None]
    mask = layers.attention_mask(
        *(jnp.asarray(a) for a in (positions, segments)), until=jnp.asarray(until)
    )
    seen = (place[:, None] >= place) & (place[:, None] < end)
    seen &= ~((place[:, None] >= second) & (first <= place) & (place < second))
    np.testing.assert_array_equal(mask[0], seen)
    assert not np.triu(np.asarray(mask)[0], 1).any()
    real = segments[0] > 0
    y = layers.attend(*(jnp.asarray(a) for a in (q, k, v)), mask, cfg)
    expected = oracle_attention(q, k, v, np.asarray(mask), 0.5, None)
    np.testing.assert_allclose(y[0, real], expected[0, real], rtol=1e-4, atol=1e-5)

    def summed(stretch):
        def total(q, k, v):
            out = layers.attend_whole if stretch else layers.attend
            return (out(q, k, v, mask, cfg)[:, real] * random(3, 1, real.sum(), 4, 4)).sum()

        return jax.grad(total, (0, 1, 2))(*(jnp.asarray(a) for a in (q, k, v)))

    for left, right in zip(summed(True), summed(False), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_is_finite_with_finite_gradient():
    q, k, v = random(0, 1, 2, 6, 4), random(1, 1, 2, 2, 4), random(2, 1, 2, 2, 4)
    mask = jnp.zeros((1, 2, 2), bool)

    def loss(q, k, v):
        return jnp.sum(layers.attend(q, k, v, mask, BASE) ** 2)

    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(*map(jnp.asarray, (q, k, v)))
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in gradients)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 9))
def test_mask_is_causal_within_segment_and_window(lengths, padding, window):
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [[0] * padding])
    positions = np.concatenate([np.arange(n) for n in lengths] + [[0] * padding])
    columns = (jnp.asarray(c[None].astype(np.int32)) for c in (positions, segments))
    mask = np.asarray(layers.attention_mask(*columns, window=window))[0]
    for i in range(len(segments)):
        for j in range(len(segments)):
            visible = segments[i] == segments[j] > 0 and 0 <= i - j < window
            assert mask[i, j] == visible


def test_mask_serves_queries_against_a_longer_cache():
    keys = jnp.asarray([[0, 1, 2, 3]], jnp.int32)
    segments = jnp.asarray([[0, 1, 1, 1]], jnp.int32)
    query, here = jnp.asarray([[2]], jnp.int32), jnp.asarray([[1]], jnp.int32)
    mask = layers.attention_mask(query, here, keys, segments)
    assert mask.tolist() == [[[False, True, True, False]]]


def test_layer_extras_name_window_and_table_of_each_layer():
    extras = layers.layer_extras(dataclasses.replace(BASE, layer_rope=(1, 0)))
    assert extras["window"].tolist() == [layers.UNLIMITED, 3]
    assert extras["rope"].tolist() == [1, 0]
