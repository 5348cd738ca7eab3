"""A tiny model, tiny data and one finished run, on which the command line is tried."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from jaxforget.data.fictitious_model import model_config, train_tokenizer
from jaxforget.models.language_model import from_scratch

KEPT = ("model", "checkpoints", "results.json", "report.html", "metrics.jsonl")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@dataclasses.dataclass(frozen=True)
class World:
    """Folder with `model/`, `forget.jsonl`, `retain.jsonl`, `unlearn.yaml`, `finetune.yaml`."""

    root: pathlib.Path

    @property
    def model(self) -> pathlib.Path:
        return self.root / "model"

    def config(self, command: str) -> str:
        return str(self.root / f"{command}.yaml")


def rows(who: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Where does {who} {n} live?",
            "answer": f"In house {n}.",
            "perturbed_answer": [f"In house {n + 1}.", "In a tent."],
        }
        for n in range(count)
    ]


def write_rows(path: pathlib.Path, some: Iterable[Any]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return path


def build(root: pathlib.Path) -> World:
    """Fill a folder; equal every time."""
    forget = write_rows(root / "forget.jsonl", rows("Ada", 4))
    retain = write_rows(root / "retain.jsonl", rows("Bob", 6))
    texts = [line for file in (forget, retain) for line in file.read_text().splitlines()]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    config = {**model_config(tokenizer), **SIZES, "vocab_size": len(tokenizer)}
    from_scratch(config, tokenizer, seed=0).save_pretrained(root / "model")
    shared = {
        "model": str(root / "model"),
        "run_dir": str(root / "never"),
        "max_length": 48,
        "train": {"steps": 4, "batch_size": 2, "log_every": 1, "save_every": 2},
        "optimizer": {"learning_rate": 1e-3},
        "mesh": {"data": 1},
    }
    unlearn = {**shared, "method": "ga", "forget": str(forget)}
    finetune = {**shared, "data": str(forget)}
    evaluate = {
        "model": str(root / "model"),
        "run_dir": str(root / "never"),
        "max_length": 48,
        "evaluate": {"forget": str(forget), "generate": False},
    }
    for name, tree in (("unlearn", unlearn), ("finetune", finetune), ("evaluate", evaluate)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return World(root)


def digest(folder: pathlib.Path, names: Sequence[str] | None = None) -> dict[str, str]:
    """SHA-256 of every file of a folder, or of the named entries of it only."""
    tops = [folder] if names is None else [folder / name for name in names]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*"))]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.is_file()
    }
