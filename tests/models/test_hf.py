"""Hugging Face folders: bit-exact both ways, and every way for a folder to be wrong."""

import json
import shutil

import golden_models
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from golden_models import FOLDER

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten, unflatten
from jaxforget.models import config as config_module
from jaxforget.models import hf
from jaxforget.models.config import param_shapes

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {name: file.get_tensor(name) for name in file.keys()}
    return found


def assert_same_tensors(left, right):
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and tensor.shape == right[name].shape, name
        assert tensor.tobytes() == right[name].tobytes(), name


@pytest.fixture
def copy(tmp_path):
    """A golden checkpoint copied where it may be damaged: (folder, edit its tensors or config)."""

    def make(case, change=None, **config):
        folder = tmp_path / case
        shutil.copytree(FOLDER / case, folder)
        if change is not None:
            stored = tensors(folder)
            change(stored)
            safetensors.numpy.save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return folder

    return make


@pytest.mark.parametrize("case", golden_models.CASES)
def test_round_trip_is_bit_exact(case, tmp_path):
    config, params = hf.read_hf(FOLDER / case)
    cfg = config_module.from_hf(config)
    assert {path: leaf.shape for path, leaf in flatten(params).items()} == param_shapes(cfg)
    hf.write_hf(tmp_path / "out", config, cfg, params)
    assert_same_tensors(tensors(FOLDER / case), tensors(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


@pytest.mark.parametrize("case", ["gpt2", "phi3", "gpt_neox"])
def test_shards_hold_the_same_and_stay_below_their_size(case, tmp_path):
    config, params = hf.read_hf(FOLDER / case)
    cfg = config_module.from_hf(config)
    hf.write_hf(tmp_path, config, cfg, params, shard_bytes=20_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / INDEX).read_text())
    stored = tensors(tmp_path)
    assert_same_tensors(tensors(FOLDER / case), stored)
    assert set(index["weight_map"]) == set(stored)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored.values())
    for name in files:
        content = safetensors.numpy.load_file(tmp_path / name)
        assert all(index["weight_map"][tensor] == name for tensor in content)
        assert len(content) == 1 or sum(t.nbytes for t in content.values()) <= 20_000
    again = flatten(hf.read_hf(tmp_path)[1])
    assert all(np.array_equal(leaf, again[path]) for path, leaf in flatten(params).items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_survive_a_round_trip_and_are_named_in_the_config(dtype, tmp_path):
    config, params = hf.read_hf(FOLDER / "llama32", dtype=dtype)
    assert {str(leaf.dtype) for leaf in flatten(params).values()} == {dtype}
    cfg = config_module.from_hf(config)
    old_spelling = {**{k: v for k, v in config.items() if k != "dtype"}, "torch_dtype": "float32"}
    hf.write_hf(tmp_path, old_spelling, cfg, params)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {**old_spelling, "torch_dtype": dtype}
    again = flatten(hf.read_hf(tmp_path)[1])
    assert all(leaf.tobytes() == again[path].tobytes() for path, leaf in flatten(params).items())


def test_export_may_change_the_dtype(tmp_path):
    config, params = hf.read_hf(FOLDER / "llama32")
    cfg = config_module.from_hf(config)
    hf.write_hf(tmp_path, config, cfg, params, "bfloat16")
    for name, tensor in tensors(FOLDER / "llama32").items():
        assert np.array_equal(tensors(tmp_path)[name], tensor.astype(ml_dtypes.bfloat16))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("case", ["gpt2", "llama32"])
def test_names_without_the_prefix_are_read_too(case, copy):
    def strip(stored):
        for name in list(stored):
            stored[name.split(".", 1)[1]] = stored.pop(name)

    assert_equal_params(hf.read_hf(copy(case, strip))[1], hf.read_hf(FOLDER / case)[1])


def assert_equal_params(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    assert all(np.array_equal(leaf, right[path]) for path, leaf in left.items())


def test_old_buffers_and_a_stored_tied_head_are_skipped(copy):
    def add(stored):
        stored["transformer.h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.uint8)
        stored["transformer.h.1.attn.masked_bias"] = np.zeros((), np.float32)
        stored["lm_head.weight"] = stored["transformer.wte.weight"]

    assert_equal_params(hf.read_hf(copy("gpt2", add))[1], hf.read_hf(FOLDER / "gpt2")[1])


def test_the_head_of_gpt_neox_has_two_names(copy):
    def rename(stored):
        stored["lm_head.weight"] = stored.pop("embed_out.weight")
        stored["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    assert_equal_params(hf.read_hf(copy("gpt_neox", rename))[1], hf.read_hf(FOLDER / "gpt_neox")[1])


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_multimodal_gemma3_gives_its_language_model(prefix, copy, caplog):
    def wrap(stored):
        for name in list(stored):
            stored[prefix + name.removeprefix("model.")] = stored.pop(name)
        stored["vision_tower.encoder.weight"] = np.ones((2, 2), np.float32)
        stored["model.multi_modal_projector.weight"] = np.ones((2, 2), np.float32)

    text = json.loads((FOLDER / "gemma3_text" / "config.json").read_text())
    folder = copy("gemma3_text", wrap)
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    config, params = hf.read_hf(folder)
    assert_equal_params(params, hf.read_hf(FOLDER / "gemma3_text")[1])
    assert config == text and "left out the image half (2 tensors)" in caplog.text


def test_infinities_pass_when_nobody_looks(copy):
    folder = copy("llama", lambda stored: stored["model.norm.weight"].__setitem__(0, np.inf))
    assert np.isinf(hf.read_hf(folder, check_finite=False)[1]["final_norm"]["scale"][0])


def drop(name):
    return lambda stored: stored.pop(name)


def put(name, value):
    return lambda stored: stored.__setitem__(name, value)


def spoil(name, value):
    return lambda stored: stored[name].__setitem__((0, 0), value)


K = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (drop(K), {}, f"missing from the weights: tensor {K}"),
        (put("model.extra.weight", np.ones(2, np.float32)), {}, "model.extra.weight unknown to"),
        (put(K, np.ones((3, 32), np.float32)), {}, r"k_proj.weight has shape \[3, 32\], config"),
        (put(K, np.ones((16, 32), np.int8)), {}, "k_proj.weight is stored as I8"),
        (put(K, np.ones((16, 32), np.float16)), {}, "k_proj.weight is float16, in other layers"),
        (spoil(K, np.nan), {}, "k_proj.weight holds 1 values that are NaN or infinite"),
        (spoil(K, np.inf), {}, "k_proj.weight holds 1 values that are NaN or infinite"),
        (None, {"vocab_size": 100}, r"embed_tokens.weight has shape \[96, 32\], .*\[100, 32\]"),
        (None, {"num_hidden_layers": 1}, r"tensors model.layers.1.* more unknown .*\(1 layers\)"),
        (None, {"num_hidden_layers": 3}, "missing from the weights: tensors model.layers.2"),
        (None, {"tie_word_embeddings": False}, "tensor lm_head.weight"),
        (None, {"model_type": "bert"}, "model_type 'bert' is not supported"),
        (put("lm_head.weight", np.ones((96, 32), np.float32)), {}, "differs from the embedding"),
    ],
)
def test_wrong_weights_are_named(change, config, message, copy):
    with pytest.raises(UserError, match=message):
        hf.read_hf(copy("llama32", change, **config))


def test_damaged_and_missing_files_are_named(copy, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        hf.read_hf(tmp_path / "nowhere")
    folder = copy("llama32")
    weights = folder / WEIGHTS
    whole = weights.read_bytes()
    for size in (0, 5, 200, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"{WEIGHTS}: damaged, or no safetensors file"):
            hf.read_hf(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pytorch_model.bin: pickled weights are never opened"):
        hf.read_hf(folder)
    for text, message in (("{", "cannot be read as JSON"), ("[]", "must hold a dictionary")):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=f"config.json: {message}"):
            hf.read_hf(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: no such file"):
        hf.read_hf(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "has no weight_map"),
        ({"a": "gone.safetensors"}, "names the file gone.safetensors, which is not in"),
        ({"a": "../model.safetensors"}, r"names the file \.\./model.safetensors, which is not"),
        ({"a": "part.safetensors"}, "lists tensor a, which none of its files holds"),
    ],
)
def test_a_wrong_index_is_named(weight_map, message, copy):
    folder = copy("llama32")
    (folder / WEIGHTS).rename(folder / "part.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        hf.read_hf(folder)


def test_wrong_parameters_are_not_exported(tmp_path):
    config, params = hf.read_hf(FOLDER / "llama32")
    cfg = config_module.from_hf(config)
    flat = flatten(params)
    lora = {**flat, "layers/attn/q/lora_a": np.zeros((2, 32, 4), np.float32)}
    missing = {path: leaf for path, leaf in flat.items() if path != "embed/w"}
    shape = {**flat, "embed/w": np.zeros((95, 32), np.float32)}
    for wrong, message in (
        (lora, "merge adapters"),
        (missing, "embed/w is missing"),
        (shape, r"embed/w has shape \[95, 32\]"),
    ):
        with pytest.raises(UserError, match=message):
            hf.write_hf(tmp_path, config, cfg, unflatten(wrong))
    with pytest.raises(UserError, match="Did you mean 'float16'"):
        hf.write_hf(tmp_path, config, cfg, params, "float61")


def test_a_disk_that_fails_is_named(tmp_path):
    config, params = hf.read_hf(FOLDER / "llama32")
    cfg = config_module.from_hf(config)
    (tmp_path / WEIGHTS).mkdir()
    with pytest.raises(UserError, match=f"{WEIGHTS}: cannot be written"):
        hf.write_hf(tmp_path, config, cfg, params)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be made"):
        hf.write_hf(tmp_path / "file", config, cfg, params)
