"""Model folders and files that are damaged, or do not belong together."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

NORM = "model.norm.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(world, tmp_path) -> pathlib.Path:
    """A copy of the good model, to be damaged."""
    return pathlib.Path(shutil.copytree(world.model, tmp_path / "damaged"))


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[pathlib.Path], None]:
    def damage(folder: pathlib.Path) -> None:
        file = folder / "model.safetensors"
        held = safetensors.numpy.load_file(file)
        change(held)
        safetensors.numpy.save_file(held, file)

    return damage


def config(**changes: Any) -> Callable[[pathlib.Path], None]:
    def damage(folder: pathlib.Path) -> None:
        file = folder / "config.json"
        held = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({k: v for k, v in held.items() if v is not ...}))

    return damage


def cut(name: str, left: float) -> Callable[[pathlib.Path], None]:
    def damage(folder: pathlib.Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * left)])

    return damage


def gone(name: str) -> Callable[[pathlib.Path], None]:
    return lambda folder: (folder / name).unlink()


def poison(value: float) -> Callable[[pathlib.Path], None]:
    def change(held: dict[str, np.ndarray]) -> None:
        held[DOWN] = held[DOWN].copy()
        held[DOWN][3, 4] = value

    return tensors(change)


def sharded(lost: bool) -> Callable[[pathlib.Path], None]:
    """One shard and its index, which names another file or a tensor too many."""

    def damage(folder: pathlib.Path) -> None:
        names = safetensors.numpy.load_file(folder / "model.safetensors")
        shard = "model-00001-of-00002.safetensors"
        (folder / "model.safetensors").rename(folder / shard)
        held = dict.fromkeys(names, shard)
        held["lm_head.weight"] = "model-00002-of-00002.safetensors" if lost else shard
        text = json.dumps({"metadata": {}, "weight_map": held})
        (folder / "model.safetensors.index.json").write_text(text)

    return damage


def pickled(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def as_integers(held: dict[str, np.ndarray]) -> None:
    held[NORM] = held[NORM].astype(np.int8)


DAMAGES = {
    "no_config": (gone("config.json"), ("config.json", "no model folder")),
    "config_torn": (cut("config.json", 0.5), ("config.json", "JSON")),
    "unknown_architecture": (
        config(model_type="lama"),
        ("model_type 'lama' is not supported", "Did you mean 'llama'?"),
    ),
    "no_architecture": (config(model_type=...), ("model_type None", "llama")),
    "size_missing": (config(hidden_size=...), ("hidden_size", "integer >= 1", "None")),
    "size_of_a_wrong_type": (config(num_hidden_layers="2"), ("num_hidden_layers", "'2'")),
    "heads_that_do_not_divide": (
        config(num_key_value_heads=3),
        ("num_key_value_heads 3", "num_attention_heads 4"),
    ),
    "unknown_activation": (config(hidden_act="sillu"), ("hidden_act 'sillu'", "'silu'")),
    "quantised": (config(quantization_config={"bits": 4}), ("quantization_config", "float32")),
    "other_rope": (
        config(rope_scaling={"rope_type": "spiral", "factor": 2.0}),
        ("rope_scaling", "spiral"),
    ),
    "no_weights": (gone("model.safetensors"), ("neither model.safetensors",)),
    "pickled_weights": (pickled, ("pytorch_model.bin", "never opened")),
    "weights_truncated": (cut("model.safetensors", 0.7), ("model.safetensors", "damaged")),
    "weights_cut_in_the_header": (
        cut("model.safetensors", 0.001),
        ("model.safetensors", "damaged"),
    ),
    "weights_emptied": (cut("model.safetensors", 0.0), ("model.safetensors", "damaged")),
    "tensor_missing": (
        tensors(lambda held: held.pop(DOWN)),
        ("missing from the weights", DOWN),
    ),
    "tensor_of_another_shape": (
        tensors(lambda held: held.update({DOWN: held[DOWN][:, :-1].copy()})),
        (DOWN, "[32, 63]", "config.json says [32, 64]"),
    ),
    "tensor_too_many": (
        tensors(lambda held: held.update({"model.extra.weight": held[NORM].copy()})),
        ("model.extra.weight", "unknown to a llama model"),
    ),
    "more_layers_than_tensors": (
        config(num_hidden_layers=3),
        ("missing from the weights", "model.layers.2."),
    ),
    "integer_tensor": (tensors(as_integers), (NORM, "stored as I8", "F32, F16, BF16")),
    "nan_in_the_weights": (poison(np.nan), (DOWN, "1 values that are NaN or infinite")),
    "infinity_in_the_weights": (poison(-np.inf), (DOWN, "NaN or infinite")),
    "shard_missing": (sharded(lost=True), ("index.json", "model-00002-of-00002", "is not in")),
    "index_with_a_tensor_too_many": (
        sharded(lost=False),
        ("index.json", "lm_head.weight", "none of its files"),
    ),
    "no_tokenizer": (gone("tokenizer.json"), ("has no tokenizer", "tokenizer.json")),
    "tokenizer_torn": (cut("tokenizer.json", 0.5), ("its tokenizer cannot be read",)),
    "generation_config_torn": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        ("generation_config.json", "JSON"),
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_model_is_refused_by_file_and_tensor(kind, refused, folder):
    damage, says = DAMAGES[kind]
    damage(folder)
    refused("unlearn", f"model={folder}", says=(str(folder), *says))


def smaller_embedding(folder: pathlib.Path) -> None:
    def change(held: dict[str, np.ndarray]) -> None:
        held["model.embed_tokens.weight"] = held["model.embed_tokens.weight"][:-9].copy()

    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tensors(change)(folder)
    config(vocab_size=rows - 9)(folder)


@pytest.mark.parametrize("command", ["unlearn", "finetune", "evaluate"])
def test_a_tokenizer_larger_than_the_embedding_is_refused(command, refused, folder):
    smaller_embedding(folder)
    says = ("the tokenizer has ids up to", "the embedding has", "the model was trained with")
    refused(command, f"model={folder}", says=says)


def test_a_random_start_needs_a_folder_with_config_and_tokenizer(refused, folder):
    start = ("initialise=random", f"model={folder}")
    (folder / "tokenizer.json").unlink()
    refused("finetune", *start, says=("has no tokenizer",))
    (folder / "config.json").unlink()
    refused("finetune", *start, says=(str(folder / "config.json"), "no such file"))
    refused(
        "finetune", "initialise=random", "model=no/folder", says=("no/folder", "no such folder")
    )


def test_a_model_that_is_nowhere_is_refused(refused, tmp_path):
    refused("unlearn", "model=./no/model", says=("no/model", "no such file or folder"))
    refused("unlearn", "model=nobody/nothing", says=("nobody/nothing", "Hugging Face hub"))
    refused("unlearn", "model=none.gguf", says=("none.gguf", "no such file"))
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    refused("unlearn", f"model={file}", says=(str(file), "a folder or a .gguf file"))
    refused("unlearn", f"model={tmp_path}", says=(str(tmp_path), "no config.json"))


def gguf_bytes(tmp_path: pathlib.Path) -> bytes:
    import gguf

    file = tmp_path / "good.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", np.ones((64, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return file.read_bytes()


GGUFS = {
    "emptied": (lambda data: b"", ("damaged, or not a GGUF file",)),
    "another_kind": (lambda data: b"PK" + data[2:], ("damaged, or not a GGUF file",)),
    "cut_in_the_metadata": (lambda data: data[:60], ("damaged, or not a GGUF file",)),
    "cut_in_the_tensors": (lambda data: data[:-300], ("damaged, or not a GGUF file",)),
    "metadata_missing": (lambda data: data, ("metadata key llama.", "is missing")),
    "unknown_architecture": (
        lambda data: data.replace(b"llama", b"lamma"),
        ("architecture 'lamma' is not supported", "Did you mean"),
    ),
}


@pytest.mark.parametrize("kind", GGUFS)
def test_a_damaged_gguf_file_is_refused(kind, refused, tmp_path):
    damage, says = GGUFS[kind]
    file = tmp_path / "model.gguf"
    file.write_bytes(damage(gguf_bytes(tmp_path)))
    refused("unlearn", f"model={file}", says=(str(file), *says))


def test_a_chat_template_that_is_not_there_is_refused(refused, folder):
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    text = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(text))
    says = ("template.kind is 'chat'", "no chat template", "plain, none")
    refused("unlearn", f"model={folder}", "template.kind=chat", says=says)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_metric_without_a_number_is_named_instead_of_losing_the_results(
    cli, world, folder, tmp_path
):
    tensors(lambda held: held.update({NORM: held[NORM] * np.float32(1e6)}))(folder)
    got = cli("evaluate", world.config("evaluate"), f"model={folder}", f"run_dir={tmp_path / 'r'}")
    assert got.code == 0, got.err
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert results["metrics"]["forget_perplexity"] is None
    assert results["evaluation"]["reasons"]["forget_perplexity"] == "it is inf"
