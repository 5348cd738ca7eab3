"""The whole decoder: equal to PyTorch's, and indifferent to packing, padding, remat and mesh."""

import dataclasses
import re

import golden_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import load, rows

from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten
from jaxforget.engine.types import Push
from jaxforget.models import decoder, hf_tables, layers
from jaxforget.models.config import param_shapes
from jaxforget.models.decoder import Compute

# between them: two rotary tables and windows, learned positions, partial rotation
VARIED = ("gemma3_text", "gpt2", "phi")
EXACT = Compute("float32")


def sequences(case):
    """The golden rows without their padding."""
    _, _, expected = load(case)
    pairs = zip(expected["tokens"], expected["mask"], strict=True)
    return [tokens[mask.astype(bool)] for tokens, mask in pairs]


def log_softmax(logits):
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def scored(cfg, params, batch, compute=EXACT, **options):
    run = jax.jit(lambda p, b: decoder.score(p, b, cfg, compute, **options))
    return run(params, batch)


def loss_and_gradient(cfg, params, batch, compute=EXACT):
    def loss(p):
        return jnp.sum(decoder.score(p, batch, cfg, compute).logp)

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_trees_close(actual, expected, tolerance):
    # some gradients are zero but for rounding (softmax ignores a key's bias): one scale for all
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for path, leaf in flatten(expected).items():
        difference = np.abs(np.asarray(flatten(actual)[path]) - np.asarray(leaf)).max()
        assert difference <= tolerance * scale, path


@pytest.mark.parametrize("case", golden_models.CASES)
def test_logits_equal_pytorch(case):
    cfg, params, expected = load(case)
    tokens, mask = (jnp.asarray(expected[k], jnp.int32) for k in ("tokens", "mask"))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    @jax.jit
    def forward(p):
        hidden, _ = decoder.hidden_states(p, tokens, mask, positions, cfg)
        return decoder.logits(hidden, decoder.head(p, cfg))

    difference = np.abs(np.asarray(forward(params)) - expected["logits"])
    assert (difference * expected["mask"][..., None]).max() < 2e-5


@pytest.mark.parametrize("case", ["gemma2", "phi"])
def test_scores_are_log_probabilities_of_the_targets(case):
    cfg, params, expected = load(case)
    scores = scored(cfg, params, rows(*([s] for s in sequences(case)), length=24), stats=True)
    logp = log_softmax(expected["logits"])
    for row, sequence in enumerate(sequences(case)):
        n = len(sequence) - 1
        here = logp[row, :n]
        chosen = here[np.arange(n), sequence[1:]]
        np.testing.assert_allclose(scores.logp[row, :n], chosen, atol=3e-5)
        assert np.all(scores.logp[row, n:] == 0)
        p = np.exp(here)
        np.testing.assert_array_equal(scores.stats.hit[row, :n], here.argmax(-1) == sequence[1:])
        np.testing.assert_allclose(scores.stats.mean[row, :n], (p * here).sum(-1), atol=3e-5)
        second = (p * here**2).sum(-1)
        np.testing.assert_allclose(scores.stats.second_moment[row, :n], second, rtol=1e-4)


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_gradients_equal_pytorch(case):
    cfg, params, expected = load(case)
    batch = rows(*([s] for s in sequences(case)), length=24)
    _, gradient = loss_and_gradient(cfg, params, batch)
    flat, compared = flatten(gradient), 0
    for entry in hf_tables.entries(cfg):
        key = "gradient:" + hf_tables.full_name(entry, cfg).format(0)
        if key in expected:
            parts = [flat[p][0] if entry.stacked else flat[p] for p in entry.paths]
            ours = entry.form.pack([np.asarray(part) for part in parts], cfg)
            assert np.abs(ours - expected[key]).max() < 2e-5 * np.abs(expected[key]).max()
            compared += 1
    assert compared == sum(key.startswith("gradient:") for key in expected) == 2


@pytest.mark.parametrize("case", VARIED)
def test_packing_changes_nothing_in_either_order(case):
    cfg, params, _ = load(case)
    a, b = sequences(case)
    alone = scored(cfg, params, rows([a], [b], length=40)).logp
    packed = scored(cfg, params, rows([a, b], [b, a], length=40)).logp
    n, m = len(a) - 1, len(b) - 1
    for row, start_a, start_b in ((0, 0, n), (1, m, 0)):
        here = packed[row]
        np.testing.assert_allclose(here[start_a : start_a + n], alone[0, :n], atol=1e-5)
        np.testing.assert_allclose(here[start_b : start_b + m], alone[1, :m], atol=1e-5)


@pytest.mark.parametrize("case", ["gemma3_text", "gpt2"])
def test_padding_has_finite_states_and_moves_no_gradient(case):
    cfg, params, _ = load(case)
    a, b = sequences(case)
    short, long = rows([a], [b], length=24), rows([a], [b], [], length=40)
    hidden = scored(cfg, params, long).hidden
    assert jnp.isfinite(hidden).all()
    (value, gradient), (padded, padded_gradient) = (
        loss_and_gradient(cfg, params, batch) for batch in (short, long)
    )
    np.testing.assert_allclose(padded, value, rtol=1e-5)
    assert_trees_close(padded_gradient, gradient, 2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_max_targets_gathers_the_labelled_slots_in_order(seed):
    cfg, params, _ = load("qwen2")
    batch = rows(*([s] for s in sequences("qwen2")), length=24)
    chance = np.random.default_rng(seed).random(batch.mask.shape) < 0.3
    batch = dataclasses.replace(batch, mask=batch.mask * jnp.asarray(chance, jnp.float32))
    full = scored(cfg, params, batch)
    few = scored(cfg, params, dataclasses.replace(batch, max_targets=16))
    assert few.logp.shape == few.mask.shape == few.segments.shape == (2, 16)
    assert few.hidden.shape == (2, 16, cfg.hidden_size)
    for row in range(2):
        where = np.flatnonzero(batch.mask[row])
        n = len(where)
        np.testing.assert_allclose(few.logp[row, :n], full.logp[row, where], atol=1e-5)
        np.testing.assert_array_equal(few.mask[row], np.arange(16) < n)
        assert np.all(few.segments[row, :n] == 1) and np.all(few.segments[row, n:] == 0)
        assert np.all(few.logp[row, n:] == 0)


def test_max_targets_beyond_the_row_is_refused():
    cfg, params, _ = load("qwen2")
    batch = rows([sequences("qwen2")[0]], length=24, max_targets=25)
    with pytest.raises(ValueError, match="max_targets 25 exceeds the row length 24"):
        decoder.score(params, batch, cfg)


@pytest.mark.parametrize("case", ["smollm2", "gemma2"])
def test_bfloat16_stays_close_and_keeps_float32_where_it_matters(case):
    cfg, params, _ = load(case)
    batch = rows(sequences(case), length=40)
    exact, rough = (scored(cfg, params, batch, Compute(dtype)) for dtype in decoder.DTYPES)
    assert rough.hidden.dtype == rough.head.weight.dtype == jnp.bfloat16
    assert rough.logp.dtype == jnp.float32
    assert float(jnp.abs(rough.logp - exact.logp).sum() / batch.mask.sum()) < 0.05
    _, gradient = loss_and_gradient(cfg, params, batch, Compute("bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("case", ["llama32", "gemma2"])
def test_sharded_equals_single_device(case):
    cfg, params, _ = load(case)
    a, b = sequences(case)
    batch = rows([a], [b], [a, b], [b, a], length=40, max_targets=40)
    value, gradient = loss_and_gradient(cfg, params, batch)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        spread = meshes.put(params, meshes.shardings(params, mesh))
        rows_spread = meshes.put_rows(batch, mesh)

        def loss(p, batch):
            return jnp.sum(decoder.score(p, batch, cfg).logp)

        other, other_gradient = jax.jit(jax.value_and_grad(loss))(spread, rows_spread)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    assert_trees_close(jax.device_get(other_gradient), gradient, 1e-5)


def test_fsdp_gathers_weights_and_leaves_activations_where_they_are():
    cfg, params, _ = load("llama32")
    batch = rows(*([s] for s in sequences("llama32") * 4), length=25)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1, fsdp=8, tensor=1))
    with jax.set_mesh(mesh):
        spread = meshes.put(params, meshes.shardings(params, mesh))
        run = jax.jit(lambda p, b: decoder.score(p, b, cfg).logp)
        program = run.lower(spread, meshes.put_rows(batch, mesh)).compile().as_text()
    moved = re.findall(r"= f32\[(\d+),[\d,]*\]\S* (?:all-gather|all-reduce|all-to-all)", program)
    assert moved and not {"8", str(8 * 25)} & set(moved)


@pytest.mark.parametrize("case", golden_models.CASES)
def test_random_parameters_have_the_shapes_of_the_checkpoint(case):
    cfg, params, _ = load(case)
    made = jax.eval_shape(lambda key: decoder.init(key, cfg, jnp.bfloat16), jax.random.key(0))
    assert {path: leaf.shape for path, leaf in flatten(made).items()} == param_shapes(cfg)
    assert jax.tree.structure(made) == jax.tree.structure(params)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(made))


def test_a_fresh_model_is_close_to_uniform():
    cfg, _, _ = load("gemma2")
    params = decoder.init(jax.random.key(0), cfg)
    logp = scored(cfg, params, rows([sequences("gemma2")[0]], length=23)).logp
    np.testing.assert_allclose(logp, -np.log(cfg.vocab_size), atol=0.6)


def test_same_shapes_trace_once():
    cfg, params, _ = load("llama")
    traces = []

    @jax.jit
    def run(p, batch):
        traces.append(1)
        return decoder.score(p, batch, cfg).logp

    a, b = sequences("llama")
    run(params, rows([a], [b], length=24))
    run(params, rows([b], [a], length=24))
    assert len(traces) == 1


@pytest.mark.parametrize(("field", "wrong"), [("dtype", "bf16"), ("remat", "dot")])
def test_wrong_compute_is_named(field, wrong):
    with pytest.raises(UserError, match=f"compute.{field} '{wrong}'"):
        Compute(**{field: wrong})


@pytest.mark.parametrize("case", VARIED)
def test_an_inner_layer_is_that_of_a_model_cut_behind_it(case):
    cfg, params, _ = load(case)
    batch = rows(*([s] for s in sequences(case)), length=24)
    for layer in (0, cfg.layers - 1):
        cut = {**params, "layers": jax.tree.map(lambda x: x[: layer + 1], params["layers"])}  # noqa: B023
        short = dataclasses.replace(
            cfg,
            layers=layer + 1,
            layer_rope=cfg.layer_rope[: layer + 1],
            layer_window=cfg.layer_window[: layer + 1],
        )
        want = scored(short, cut, batch, residual=-1)
        ours = scored(cfg, params, batch, residual=layer)
        np.testing.assert_allclose(ours.residual, want.residual, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours.logp, scored(cfg, params, batch).logp, atol=1e-5)
    with pytest.raises(UserError, match="layers 0 to"):
        scored(cfg, params, batch, residual=cfg.layers)


def cut(cfg, params, start, stop):
    """The model of layers start to stop alone."""
    part = {**params, "layers": jax.tree.map(lambda x: x[start:stop], params["layers"])}
    ropes, windows = cfg.layer_rope[start:stop], cfg.layer_window[start:stop]
    short = dataclasses.replace(cfg, layers=stop - start, layer_rope=ropes, layer_window=windows)
    return short, part


@pytest.mark.parametrize("case", VARIED)
def test_what_the_last_matrix_of_a_layer_multiplies_is_read_at_the_slots(case):
    """Its product with that matrix is the difference that zeroing the matrix makes."""
    cfg, params, _ = load(case)
    batch = rows(*([s] for s in sequences(case)), length=24, max_targets=8, first_target=5)
    for layer in (0, cfg.layers - 1):
        got = scored(cfg, params, batch, mlp_inner=layer, residual=layer)
        down = params["layers"]["mlp"]["down"]
        made = got.mlp_inner @ down["w"][layer]
        if "b" in down:
            made = made + down["b"][layer][None, None]
        if "mlp_out_norm" in params["layers"]:
            one = jax.tree.map(lambda x: x[layer], params["layers"]["mlp_out_norm"])  # noqa: B023
            made = layers.norm(made, one, cfg)
        zeros = jax.tree.map(lambda x: x.at[layer].set(0.0), down)  # noqa: B023
        without = {**params["layers"], "mlp": {**params["layers"]["mlp"], "down": zeros}}
        bare = scored(cfg, {**params, "layers": without}, batch, residual=layer)
        np.testing.assert_allclose(got.residual - bare.residual, made, atol=2e-5)
        assert float(jnp.abs(made).max()) > 1e-2
        np.testing.assert_allclose(got.logp, scored(cfg, params, batch).logp, atol=1e-5)


@pytest.mark.parametrize("case", VARIED)
def test_a_push_is_added_behind_its_layer_at_its_place_alone(case):
    """The layers behind it give what they give to a stream that is made by hand."""
    cfg, params, _ = load(case)
    batch = rows(*([s] for s in sequences(case)), length=24)
    noise = jax.random.normal(jax.random.key(0), (2, cfg.hidden_size))
    at = jnp.asarray([3, -1], jnp.int32)
    push = Push(at=at, by=noise, layer=-2)
    got = scored(cfg, params, batch, push=push, residual=-2)
    plain = scored(cfg, params, batch, residual=-2)
    stream = np.asarray(plain.residual).copy()
    stream[0, 3] += np.asarray(noise[0])
    np.testing.assert_allclose(got.residual, stream, atol=1e-6)
    short, part = cut(cfg, params, cfg.layers - 1, cfg.layers)
    tables = layers.rope_tables(batch.positions, cfg)
    extra = jax.tree.map(lambda x: x[0], layers.layer_extras(short))
    mask = layers.attention_mask(batch.positions, batch.segments, window=extra["window"])
    last, _, _ = layers.block(
        jax.tree.map(lambda x: x[0], part["layers"]),
        jnp.asarray(stream),
        layers.select_rope(tables, extra["rope"]),
        lambda q, k, v: (layers.attend(q, k, v, mask, cfg), None),
        cfg,
    )
    want = layers.norm(last, params["final_norm"], cfg)
    held = np.asarray(batch.segments)[..., None] > 0
    np.testing.assert_allclose(got.hidden * held, want * held, atol=3e-5)
    np.testing.assert_array_equal(got.hidden[0, :3], plain.hidden[0, :3])
    assert float(jnp.abs(got.hidden - plain.hidden)[0, 3:5].max()) > 1e-2
    np.testing.assert_allclose(got.hidden[1], plain.hidden[1], atol=1e-6)


def test_looking_inside_is_the_same_on_every_mesh():
    cfg, params, _ = load("gpt2")
    batch = rows(*([s] for s in sequences("gpt2") * 2), length=24)
    push = Push(jnp.asarray([3, 1, -1, 2], jnp.int32), jnp.ones((4, cfg.hidden_size)), 0)
    want = scored(cfg, params, batch, push=push, mlp_inner=-1, residual=0)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = meshes.put(params, meshes.shardings(params, mesh))
        got = scored(cfg, placed, *meshes.put_rows((batch,), mesh), push=push, mlp_inner=-1)
    np.testing.assert_allclose(got.mlp_inner, want.mlp_inner, atol=1e-5)
    np.testing.assert_allclose(got.logp, want.logp, atol=1e-5)


def test_layers_behind_the_only_one_used_cost_nothing():
    cfg, params, _ = load("gpt2")
    batch = rows(*([s] for s in sequences("gpt2")), length=24)

    def products(also_logp):
        def loss(p):
            scores = decoder.score(p, batch, cfg, Compute(remat="none"), residual=0)
            rest = scores.logp.sum() if also_logp else 0.0
            return jnp.square(scores.residual).sum() + rest

        return jax.jit(jax.grad(loss)).lower(params).compile().as_text().count(" dot(")

    # one loop forward and one backward instead of two each, and no head
    assert products(False) < 0.5 * products(True)
