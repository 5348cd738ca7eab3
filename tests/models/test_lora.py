"""Adapters start as nothing, merge to what they compute, and say what they can adapt."""

import golden_models
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from golden_models import load, rows

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten, merge
from jaxforget.models import decoder
from jaxforget.models.lora import has_lora, init_lora, merge_lora


def adapted(case="qwen2", targets="attn/(q|v)|mlp/down", seed=3):
    """A model with adapters whose B is not zero any more."""
    cfg, params, _ = load(case)
    trained, extra = init_lora(jax.random.key(seed), params, rank=4, alpha=8.0, targets=targets)
    rng = np.random.default_rng(seed)
    trained = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32), trained
    )
    return cfg, params, merge(merge(params, extra), trained)


def logp(cfg, params):
    sequence = np.asarray(load("qwen2")[2]["tokens"][0])
    return decoder.score(params, rows([sequence], length=24), cfg).logp


def test_factors_lie_beside_their_weight_and_only_they_are_trained():
    cfg, params, _ = load("qwen2")
    trained, extra = init_lora(jax.random.key(0), params, rank=4, alpha=8.0, targets="attn/q$")
    flat = flatten(trained)
    assert set(flat) == {"layers/attn/q/lora_a", "layers/attn/q/lora_b"}
    assert flat["layers/attn/q/lora_a"].shape == (cfg.layers, cfg.hidden_size, 4)
    assert flat["layers/attn/q/lora_b"].shape == (cfg.layers, 4, cfg.heads * cfg.head_dim)
    assert set(flatten(extra)) == {"layers/attn/q/lora_scale"}
    np.testing.assert_array_equal(extra["layers"]["attn"]["q"]["lora_scale"], [2.0] * cfg.layers)
    assert has_lora(merge(params, trained)) and not has_lora(params)


def test_a_has_the_stated_scale_and_does_not_depend_on_the_other_targets():
    wide = {"layers": {"x": {"w": np.zeros((2, 400, 64))}, "y": {"w": np.zeros((2, 400, 64))}}}
    both, _ = init_lora(jax.random.key(1), wide, rank=32, alpha=1.0, targets="x|y")
    alone, _ = init_lora(jax.random.key(1), wide, rank=32, alpha=1.0, targets="y")
    a = both["layers"]["y"]["lora_a"]
    np.testing.assert_array_equal(a, alone["layers"]["y"]["lora_a"])
    assert not np.array_equal(a, both["layers"]["x"]["lora_a"])
    np.testing.assert_allclose(np.std(a), 1 / np.sqrt(400), rtol=0.03)


def test_new_adapters_change_nothing():
    cfg, params, _ = load("qwen2")
    trained, extra = init_lora(jax.random.key(0), params, rank=4, alpha=8.0, targets=".")
    with_adapters = merge(merge(params, extra), trained)
    np.testing.assert_array_equal(logp(cfg, with_adapters), logp(cfg, params))


def test_merged_weights_compute_what_adapters_compute():
    cfg, params, with_adapters = adapted()
    merged = merge_lora(with_adapters)
    assert flatten(merged).keys() == flatten(params).keys()
    assert np.abs(logp(cfg, with_adapters) - logp(cfg, params)).max() > 0.05
    np.testing.assert_allclose(logp(cfg, merged), logp(cfg, with_adapters), atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("xp", [np, jnp])
def test_merging_is_float32_arithmetic_cast_back(xp, dtype):
    rng = np.random.default_rng(0)
    w, a, b = (rng.normal(size=shape) for shape in ((2, 6, 5), (2, 6, 3), (2, 3, 5)))
    scale = np.array([2.0, 0.5], np.float32)
    w = w.astype(dtype)
    leaf = {"w": w, "b": w[:, 0], "lora_a": a, "lora_b": b, "lora_scale": scale}
    params = {
        "layers": {
            "q": {
                k: xp.asarray(v, getattr(v, "dtype", None) if k in "wb" else np.float32)
                for k, v in leaf.items()
            }
        }
    }
    out = merge_lora(params)["layers"]["q"]
    assert set(out) == {"w", "b"} and out["w"].dtype == dtype
    assert isinstance(out["w"], np.ndarray) == (xp is np)
    expected = w.astype(np.float64) + (a @ b) * scale[:, None, None]
    tolerance = 1e-5 if dtype is np.float32 else 2**-7
    np.testing.assert_allclose(
        np.asarray(out["w"], np.float64), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("case", golden_models.CASES)
def test_merging_nothing_is_the_identity(case):
    _, params, _ = load(case)
    merged = merge_lora(params)
    assert all(leaf is flatten(merged)[path] for path, leaf in flatten(params).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "query"}, "'query' matches none of: layers/attn/k, layers/attn/o"),
        ({"targets": "("}, "lora.targets '\\(' is no regular expression"),
        ({"rank": 0}, "lora.rank must be an integer >= 1, got 0"),
        ({"rank": 17, "targets": "attn/k"}, r"17 exceeds the smaller side of layers/attn/k \(32"),
        ({"alpha": 0.0}, "lora.alpha must be > 0"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    _, params, _ = load("qwen2")
    with pytest.raises(UserError, match=message):
        init_lora(jax.random.key(0), params, **{"rank": 2, "alpha": 4.0, "targets": "q", **options})


def test_a_second_adapter_is_refused():
    _, _, params = adapted()
    with pytest.raises(UserError, match="layers/attn/q has an adapter already"):
        init_lora(jax.random.key(0), params, rank=2, alpha=4.0, targets="attn/q")
