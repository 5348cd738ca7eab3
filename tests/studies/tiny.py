"""A tiny fictitious world on disk and a tiny Llama that has learnt some of it."""

import json
import pathlib
import shutil

import numpy as np

from jaxforget.config import FinetuneConfig, UnlearnConfig, build
from jaxforget.data.fictitious import write
from jaxforget.engine.run_dir import read_metrics
from jaxforget.models.hf import read_hf
from jaxforget.studies import finetune

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "head_dim": 16,
}
CLOCKS = ("time", "tokens_per_second", "step_ms")


def make(root: pathlib.Path) -> pathlib.Path:
    """`data/` with every set and `base/model`, a model trained for some steps on all of it."""
    data = root / "data"
    write(data, 0, vocab_size=384, forget_people=3, retain_people=5, known_people=4, facts=4)
    config = json.loads((data / "config.json").read_text())
    (data / "config.json").write_text(json.dumps({**config, **SIZES}))
    tree = {
        "model": str(data),
        "initialise": "random",
        "data": str(data / "train_full.jsonl"),
        "run_dir": str(root / "base"),
        "max_length": 128,
        "train": {"steps": 30, "batch_size": 8},
        "optimizer": {"learning_rate": 3e-3},
        "mesh": {"data": 1},
    }
    finetune(build(FinetuneConfig, tree))
    return root


def settings(world: pathlib.Path, run: pathlib.Path, **changes) -> dict:
    """Configuration of an unlearning run of 20 steps, every one logged, saved at 10 and 20."""
    train = {"steps": 20, "batch_size": 8, "log_every": 1, "save_every": 10}
    tree = {
        "model": str(world / "base"),
        "forget": str(world / "data" / "forget.jsonl"),
        "retain": str(world / "data" / "retain.jsonl"),
        "run_dir": str(run),
        "method": "npo",
        "max_length": 128,
        "optimizer": {"learning_rate": 1e-3},
        "mesh": {"data": 1},
    }
    return {**tree, **changes, "train": {**train, **changes.get("train", {})}}


def config(world: pathlib.Path, run: pathlib.Path, **changes) -> UnlearnConfig:
    return build(UnlearnConfig, settings(world, run, **changes))


def rows(run: pathlib.Path) -> list[dict]:
    """Metrics of every logged step, without what a clock decides."""
    logged = read_metrics(run / "metrics.jsonl")
    return [{key: row[key] for key in row if key not in CLOCKS} for row in logged]


def exported(run: pathlib.Path) -> dict[str, np.ndarray]:
    """Flat parameters of the exported model."""
    from jaxforget.engine.tree import flatten

    return {path: np.asarray(leaf) for path, leaf in flatten(read_hf(run / "model")[1]).items()}


def only_checkpoint(run: pathlib.Path, copy: pathlib.Path, step: int) -> pathlib.Path:
    """A copy of a finished run as it stood when the checkpoint of `step` was its newest."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("programs"))
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name != str(step):
            shutil.rmtree(checkpoint)
    for name in ("results.json", "report.html"):
        (copy / name).unlink()
    shutil.rmtree(copy / "model")
    return copy


def same_curve(mine: list[dict], theirs: list[dict], rtol: float = 1e-5) -> None:
    """Every scalar of every step agrees; a divergence that is nearly nothing by its size alone."""
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    assert mine and mine[0].keys() == theirs[0].keys()
    for key in mine[0]:
        pair = [[row[key] for row in some] for some in (mine, theirs)]
        np.testing.assert_allclose(*pair, rtol=rtol, atol=1e-9, err_msg=key)
