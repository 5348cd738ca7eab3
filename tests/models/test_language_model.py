"""Loading from wherever a model lies, and exports that are whole or not there at all."""

import errno
import json
import shutil

import golden_models
import jax
import numpy as np
import pytest
import safetensors.numpy
from golden_models import FOLDER, load, rows

from jaxforget import models
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten, merge
from jaxforget.models import Compute, decoder, export, language_model
from jaxforget.models.lora import init_lora, merge_lora

VOCAB = 96


def make_tokenizer(size=VOCAB):
    """A word tokenizer of exactly `size` entries."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>"] + [f"w{i}" for i in range(3, size)]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


@pytest.fixture
def folder(tmp_path):
    """A golden checkpoint in bfloat16 with a tokenizer and a generation config."""
    place = tmp_path / "source"
    lm = models.load(FOLDER / "llama32")
    language_model.LanguageModel(
        lm.params,
        lm.config,
        lm.hf_config,
        make_tokenizer(),
        generation_config={"eos_token_id": [2, 5]},
    ).save_pretrained(place, dtype="bfloat16")
    return place


def assert_same_params(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        assert leaf.dtype == right[path].dtype, path
        assert np.asarray(leaf).tobytes() == np.asarray(right[path]).tobytes(), path


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("case", golden_models.CASES)
def test_saved_and_loaded_again_is_bit_equal(case, tmp_path):
    lm = models.load(FOLDER / case)
    lm.save_pretrained(tmp_path / "out")
    again = models.load(str(tmp_path / "out"))
    assert_same_params(again.params, lm.params)
    assert again.config == lm.config and again.hf_config == lm.hf_config
    assert lm.tokenizer is None and again.tokenizer is None


def test_the_checkpoints_dtype_is_written_whatever_was_computed_with(folder, tmp_path):
    lm = models.load(folder, dtype="float32")
    assert {str(leaf.dtype) for leaf in flatten(lm.params).values()} == {"float32"}
    lm.save_pretrained(tmp_path / "same")
    assert bytes_of(tmp_path / "same") == bytes_of(folder)
    lm.save_pretrained(tmp_path / "wide", dtype="float32")
    assert_same_params(models.load(tmp_path / "wide").params, lm.params)


def test_tokenizer_and_generation_config_travel_along(folder, tmp_path):
    lm = models.load(folder)
    assert lm.eos_ids == (2, 5)
    lm.save_pretrained(tmp_path / "out")
    again = models.load(tmp_path / "out")
    assert again.tokenizer("w7 w9")["input_ids"] == [7, 9]
    assert again.generation_config == {"eos_token_id": [2, 5]}
    (folder / "generation_config.json").unlink()
    assert models.load(folder).eos_ids == (2,)


def test_score_and_head_are_the_decoders(folder):
    lm = models.load(folder, dtype="float32", compute=Compute(remat="none"))
    batch = rows([np.arange(3, 20)], length=24)
    scores = lm.score(lm.params, batch, stats=True)
    expected = decoder.score(lm.params, batch, lm.config, stats=True)
    np.testing.assert_allclose(scores.logp, expected.logp, atol=1e-5)
    assert scores.stats is not None and lm.head(lm.params).weight.shape == (VOCAB, 32)


def test_models_hash_by_identity_so_that_their_methods_are_static(folder):
    lm = models.load(folder)
    assert lm == lm and lm != models.load(folder)
    assert hash(lm.score) == hash(lm.score) and lm.score == lm.score
    run = jax.jit(lambda score, x: x, static_argnums=0)
    run(lm.score, 1.0)
    run(lm.score, 2.0)
    assert run._cache_size() == 1


def test_generation_ends_at_the_models_own_end_tokens(folder):
    lm = models.load(folder, dtype="float32")
    prompts = [np.array([7, 9, 11], np.int32), np.array([30], np.int32)]
    free = lm.generate(lm.params, prompts, max_new_tokens=8, eos_ids=())
    assert [len(made) for made in free] == [8, 8]
    ends = {"eos_token_id": int(free[0][2])}
    ended = language_model.LanguageModel(
        lm.params, lm.config, lm.hf_config, None, generation_config=ends
    ).generate(lm.params, prompts, max_new_tokens=8)
    first = free[0].tolist()
    assert ended[0].tolist() == first[: first.index(ends["eos_token_id"]) + 1]


def test_adapters_are_merged_on_export(tmp_path):
    lm = models.load(FOLDER / "llama32")
    trained, extra = init_lora(jax.random.key(0), lm.params, rank=2, alpha=4.0, targets="attn")
    adapted = merge(merge(lm.params, extra), jax.tree.map(lambda leaf: leaf + 0.1, trained))
    lm.save_pretrained(tmp_path / "out", params=jax.tree.map(np.asarray, adapted))
    expected = merge_lora(jax.tree.map(np.asarray, adapted))
    assert_same_params(models.load(tmp_path / "out").params, expected)


def test_a_run_directory_stands_for_its_model(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: x\n")
    shutil.copytree(folder, run / "model")
    assert_same_params(models.load(run).params, models.load(folder).params)


def test_parameters_are_placed_on_the_given_mesh(folder):
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1, fsdp=4, tensor=2))
    lm = models.load(folder, mesh=mesh)
    assert lm.params["layers"]["attn"]["q"]["w"].sharding.spec == jax.P(None, "fsdp", "tensor")
    assert_same_params(lm.params, models.load(folder).params)


def test_a_new_model_is_decided_by_config_and_seed(tmp_path):
    hf_config = json.loads((FOLDER / "smollm2" / "config.json").read_text())
    lm, same, other = (models.from_scratch(hf_config, make_tokenizer(), s) for s in (1, 1, 2))
    assert_same_params(lm.params, same.params)
    assert not np.array_equal(lm.params["embed"]["w"], other.params["embed"]["w"])
    lm.save_pretrained(tmp_path / "out")
    assert_same_params(models.load(tmp_path / "out").params, lm.params)
    with pytest.raises(UserError, match=r"ids up to 96 \('w96'\), the embedding has 96 rows"):
        models.from_scratch(hf_config, make_tokenizer(97), 0)


def test_a_hub_repository_is_downloaded_without_anything_executable(folder, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(repository, **options):
        asked.append((repository, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert_same_params(models.load("someone/a-model").params, models.load(folder).params)
    ((repository, options),) = asked
    assert repository == "someone/a-model"
    kinds = {pattern.rsplit(".", 1)[-1] for pattern in options["allow_patterns"]}
    assert kinds == {"json", "safetensors", "model", "txt", "jinja"}


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("target", "name"),
    [(safetensors.numpy, "save_file"), (export, "write_text"), (export.os, "fsync")],
)
@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_harms_nothing(target, name, before, folder, tmp_path, monkeypatch):
    lm = models.load(folder)
    place = tmp_path / "place" / "model"
    if before:
        models.load(FOLDER / "llama").save_pretrained(place)
        kept = bytes_of(place)
    with monkeypatch.context() as broken:
        broken.setattr(target, name, full_disk)
        with pytest.raises(UserError, match="No space left on device"):
            lm.save_pretrained(place)
    left = sorted(path.name for path in place.parent.iterdir())
    assert left == (["model"] if before else [])
    assert not before or bytes_of(place) == kept
    lm.save_pretrained(place)
    assert bytes_of(place) == bytes_of(folder)


def test_a_tokenizer_that_cannot_be_written_harms_nothing(folder, monkeypatch):
    lm = models.load(folder)
    kept = bytes_of(folder)
    monkeypatch.setattr(lm.tokenizer, "save_pretrained", full_disk, raising=False)
    with pytest.raises(UserError, match="the tokenizer cannot be written: .*No space left"):
        lm.save_pretrained(folder, dtype="float32")
    assert bytes_of(folder) == kept and sorted(folder.parent.iterdir()) == [folder]


def test_a_rename_that_fails_puts_the_old_folder_back(folder, monkeypatch):
    lm = models.load(folder)
    kept = bytes_of(folder)
    original = type(folder).rename

    def rename(self, target):
        if self.name.endswith(".part"):
            full_disk()
        return original(self, target)

    monkeypatch.setattr(type(folder), "rename", rename)
    with pytest.raises(UserError, match="No space left"):
        lm.save_pretrained(folder, dtype="float32")
    assert bytes_of(folder) == kept and sorted(folder.parent.iterdir()) == [folder]


def test_what_a_killed_process_left_is_tidied_up(folder):
    lm = models.load(folder)
    kept = bytes_of(folder)
    part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    folder.rename(old)  # killed between the two renames
    shutil.copytree(old, part)
    (part / "model.safetensors").write_bytes(b"half")
    lm.save_pretrained(folder)
    assert bytes_of(folder) == kept and sorted(folder.parent.iterdir()) == [folder]


def test_only_model_folders_are_replaced(folder, tmp_path):
    lm = models.load(folder)
    lm.save_pretrained(folder, dtype="float32")
    assert models.load(folder).params["embed"]["w"].dtype == np.float32
    home = tmp_path / "home"
    home.mkdir()
    lm.save_pretrained(home)
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="home: holds thesis.tex, which is no part of a model"):
        lm.save_pretrained(home)
    assert (home / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match="thesis.tex: is a file; a model needs a folder"):
        lm.save_pretrained(home / "thesis.tex")


def damage(folder, what):
    if what == "config":
        (folder / "config.json").unlink()
    elif what == "weights":
        (folder / "model.safetensors").unlink()
    elif what == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif what == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    elif what == "large tokenizer":
        make_tokenizer(97).save_pretrained(str(folder))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("config", "source: has no config.json"),
        ("weights", "source: neither model.safetensors nor"),
        ("pickle", "pytorch_model.bin: pickled weights are never opened"),
        ("tokenizer", "source: its tokenizer cannot be read"),
        ("large tokenizer", r"source: the tokenizer has ids up to 96 .* the embedding has 96 rows"),
    ],
)
def test_damaged_folders_are_named(what, message, folder):
    damage(folder, what)
    with pytest.raises(UserError, match=message):
        models.load(folder)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/at/all", "/nowhere/at/all: no such file or folder"),
        ("nowhere.gguf", "nowhere.gguf: no such file"),
        ("runs/typo", "runs/typo: no such file or folder, and not available from the Hugging"),
        (__file__, "a model is a folder or a .gguf file"),
    ],
)
def test_missing_paths_are_named(path, message):
    with pytest.raises(UserError, match=message):
        models.load(path)


def test_a_wrong_dtype_is_refused_before_anything_is_read(folder):
    with pytest.raises(UserError, match="dtype 'bf16'"):
        models.load(folder, dtype="bf16")


def test_placeholders_beyond_the_embedding_are_left_with_a_warning(folder, caplog):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(str(folder))
    assert len(models.load(folder).tokenizer) == VOCAB + 1
    assert "tokens the embedding lacks: <image>" in caplog.text
    tokenizer.pad_token = "<image>"
    tokenizer.save_pretrained(str(folder))
    with pytest.raises(UserError, match="ids up to 96"):
        models.load(folder)


def test_golden_configs_say_what_was_loaded():
    cfg, _, _ = load("llama32")
    assert models.load(FOLDER / "llama32").config == cfg
