"""The whole story in one command: teach, make an oracle, unlearn three ways, compare.

A tiny model learns fictitious people; an oracle learns all but some of them; GradDiff, KL
minimisation and NPO then make the first model forget those, and every model is judged by TOFU's
metrics against the oracle. Needs no network and no accelerator.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxforget.config import FinetuneConfig, UnlearnConfig, build
from jaxforget.data.fictitious import write
from jaxforget.engine.files import write_json
from jaxforget.report import load_run, write_report
from jaxforget.studies.common import SILENT, Events
from jaxforget.studies.unlearn import finetune, unlearn

# chosen on seed 0 of the people and checked on seeds 1 to 3
TEACH: Mapping[str, Any] = {
    "train": {"epochs": 20, "batch_size": 32, "compute": "float32", "log_every": 20},
    "optimizer": {
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_fraction": 0.05,
        "weight_decay": 0.01,
    },
}
FORGET: Mapping[str, Mapping[str, Any]] = {
    "graddiff": {"method": {"name": "graddiff"}, "rate": 3e-4, "epochs": 15},
    "kl_min": {"method": {"name": "kl_min"}, "rate": 3e-4, "epochs": 15},
    "npo": {"method": {"name": "npo", "beta": 0.3}, "rate": 5e-4, "epochs": 20},
}
SETS = ("forget", "retain", "real_authors", "world_facts")


def quickstart(
    run_dir: str | pathlib.Path, *, seed: int = 0, events: Events = SILENT
) -> list[dict[str, Any]]:
    """Run everything, resuming what a killed call left.

    Args:
      run_dir: holds `data/`, one run directory a model, `summary.json` and `report.html`.
      seed: of the people, the models and the data order, >= 0.
      events: see `Events`.
    Returns:
      The rows of summary.json: name, forget_prob, retain_prob, forget_rouge, forget_quality,
      model_utility, seconds.
    """
    root = pathlib.Path(run_dir)
    data = root / "data"
    if not (data / "config.json").exists():
        write(data, seed)
    for name, files in (("oracle", "train_without_forget"), ("finetuned", "train_full")):
        finetune(teaching(root, name, files, seed), _named(events, name))
    for name, choice in FORGET.items():
        unlearn(_forget(root, name, choice, seed), _named(events, name))
    order = ("finetuned", "oracle", *FORGET)
    runs = [load_run(root / name, name) for name in order]
    rows = [run.row() for run in runs]
    write_json(root / "summary.json", {"seed": seed, "rows": rows})
    write_report(runs, root / "report.html", title="jaxforget quickstart")
    return rows


def judging(root: pathlib.Path, oracle: bool) -> dict[str, Any]:
    """The suite's configuration over `root/data`, against `root/oracle` where `oracle`."""
    sets = {name: str(root / "data" / f"{name}.jsonl") for name in SETS}
    against = {"oracle": str(root / "oracle")} if oracle else {}
    return {**sets, **against, "max_new_tokens": 40, "batch_size": 64}


def teaching(root: pathlib.Path, name: str, file: str, seed: int) -> FinetuneConfig:
    """How `root/name` learns `root/data/file.jsonl` from nothing."""
    tree = {
        "model": str(root / "data"),
        "initialise": "random",
        "data": str(root / "data" / f"{file}.jsonl"),
        "run_dir": str(root / name),
        "max_length": 128,
        "train": {**TEACH["train"], "seed": seed},
        "optimizer": TEACH["optimizer"],
        "evaluate": judging(root, oracle=name != "oracle"),
    }
    return build(FinetuneConfig, tree, "quickstart")


def _forget(root: pathlib.Path, name: str, choice: Mapping[str, Any], seed: int) -> UnlearnConfig:
    tree = {
        "model": str(root / "finetuned"),
        "forget": str(root / "data" / "forget.jsonl"),
        "retain": str(root / "data" / "retain.jsonl"),
        "method": choice["method"],
        "run_dir": str(root / name),
        "max_length": 128,
        "train": {"epochs": choice["epochs"], "batch_size": 32, "seed": seed, "log_every": 2},
        "optimizer": {"learning_rate": choice["rate"], "warmup_fraction": 0.1},
        "evaluate": judging(root, oracle=True),
    }
    return build(UnlearnConfig, tree, "quickstart")


def _named(events: Events, name: str) -> Events:
    return dataclasses.replace(events, stage=lambda text: events.stage(f"{name}: {text}"))
