"""Full disks: whatever cannot be written, what was written before stays, and the run resumes."""

import os
import pathlib

import jax
import pytest
import safetensors.numpy
from cli.conftest import Outcome, check_refusal
from cli.conftest import command as shell
from cli.world import digest
from tokenizers import Tokenizer

from jaxforget.engine.errors import UserError
from jaxforget.models.language_model import load

CALM = {"PYTHONWARNINGS": "ignore"}  # the cache of compiled programs meets the limit, too
WORK = ("model", "checkpoints", "metrics.jsonl")  # what took work


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.fixture
def unfinished(run_dir) -> pathlib.Path:
    """A run that was killed after its last checkpoint; an earlier export is still there."""
    (run_dir / "results.json").unlink()
    (run_dir / "report.html").unlink()
    return run_dir


@pytest.fixture
def command(world, unfinished) -> tuple[str, ...]:
    return ("unlearn", world.config("unlearn"), f"run_dir={unfinished}")


def check_unharmed(got: Outcome, says: str, before: dict[str, str], folder: pathlib.Path) -> None:
    check_refusal(got, ("No space left on device", str(folder / says)))
    assert digest(folder, WORK) == before
    assert not [path for path in folder.rglob("*") if ".part" in path.name]


@pytest.mark.parametrize(
    "name", ["config.yaml", ".identity.json", "metrics.jsonl", "results.json", "report.html"]
)
def test_a_disk_full_at_any_file_harms_nothing_and_the_run_resumes(
    name, cli, command, unfinished, monkeypatch
):
    before, itself, replace = digest(unfinished, WORK), digest(unfinished, [name]), os.replace

    def full_for_one(source, place):
        return full() if pathlib.Path(place).name == name else replace(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_for_one)
        got = cli(*command)
    check_unharmed(got, name, before, unfinished)
    assert digest(unfinished, [name]) == itself
    assert cli(*command).code == 0
    assert digest(unfinished, WORK) == before


@pytest.mark.parametrize(
    ("owner", "writer"),
    [
        (safetensors.numpy, "save_file"),
        (pathlib.Path, "write_text"),
        (Tokenizer, "save"),
        (os, "fsync"),
        (pathlib.Path, "rename"),
    ],
    ids=["weights", "config", "tokenizer", "flush", "exchange"],
)
def test_a_disk_full_during_the_export_leaves_the_earlier_export(
    owner, writer, cli, command, unfinished, monkeypatch
):
    before = digest(unfinished, WORK)
    with monkeypatch.context() as patch:
        # the files before it fit
        patch.setattr("jaxforget.engine.files._write", pathlib.Path.write_bytes)
        patch.setattr(owner, writer, full)
        got = cli(*command)
    check_unharmed(got, "", before, unfinished)
    assert cli(*command).code == 0
    assert digest(unfinished, WORK) == before


def test_a_disk_full_during_a_report_leaves_the_earlier_report(cli, run_dir, monkeypatch):
    out = run_dir / "report.html"
    before = out.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    check_refusal(cli("report", run_dir, "--out", out), ("No space left on device", str(out)))
    assert out.read_bytes() == before


def test_a_checkpoint_the_kernel_refuses_to_write_is_one_message(world, tmp_path, cli):
    run = tmp_path / "run"
    command = ("unlearn", world.config("unlearn"), f"run_dir={run}")
    got = shell(*command, file_limit=100_000, environment=CALM)
    says = ("cannot write a checkpoint in", str(run / "checkpoints"), "File too large", "resumes")
    check_refusal(got, says, progress=("step ",))
    assert not (run / "model").exists() and not (run / "results.json").exists()
    assert cli(*command).code == 0 and (run / "results.json").exists()


def test_an_export_the_kernel_refuses_to_write_is_one_message(command, unfinished):
    before = digest(unfinished, WORK)
    got = shell(*command, file_limit=100_000, environment=CALM)
    check_refusal(got, ("model.safetensors", "File too large", str(unfinished)))
    assert digest(unfinished, WORK) == before


@pytest.mark.parametrize("factor", [1e7, float("nan")], ids=["too_large", "nan"])
def test_weights_no_file_can_hold_never_replace_an_export(factor, run_dir):
    before = digest(run_dir, ["model"])
    lm = load(run_dir)
    worse = jax.tree.map(lambda leaf: leaf * factor, lm.params)
    with pytest.raises(UserError, match="tensor .*weight holds values .* too large for float16"):
        lm.save_pretrained(run_dir / "model", worse, dtype="float16")
    assert digest(run_dir, ["model"]) == before
