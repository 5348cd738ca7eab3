"""What a meta-evaluation trains: two pools of models, and some that are made to forget."""

import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from jaxforget.config import EvaluateConfig, FinetuneConfig, UnlearnConfig, build
from jaxforget.data.fictitious import Row, generate
from jaxforget.data.fictitious_model import language, model_config, train_tokenizer
from jaxforget.engine.files import write_atomically, write_json
from jaxforget.studies.quickstart import TEACH

KNOWING = ("taught", "reworded")
"""Models with the knowledge: they read all of it, or only other wordings than are asked for."""

IGNORANT = ("absent", "misled")
"""Models without: they read nothing of it, or wrong answers to the questions."""

ORACLE = "absent-0"


@dataclass(frozen=True)
class MetaConfig:
    """`jaxforget audit --meta`: how far the metrics themselves can be trusted.

    Attributes:
      run_dir: where everything is written.
      models: of each pool, in turns of `KNOWING` or `IGNORANT`, each from a seed of its own.
      people: whose facts are to be forgotten; as many are held out, three times as many kept.
      epochs: of teaching.
      methods: by which the first knowing model is made to forget.
      unlearn_epochs, unlearn_rate: of each.
      relearn_steps, relearn_rate: of training on the forget set.
      bits: of the rounded weights.
      generate: also generate answers, for ROUGE and refusals.
      batch_size: examples a step.
      vocab_size: of the tokenizer.
      architecture: entries of the models' config.json that differ from the benchmark's own.
      seed: of people, models and data order.
    """

    run_dir: str = "runs/meta"
    models: Annotated[int, Ge(2)] = 4
    people: Annotated[int, Ge(1), Le(20)] = 10
    epochs: Annotated[float, Gt(0)] = 20
    methods: tuple[str, ...] = ("graddiff", "npo", "simnpo")
    unlearn_epochs: Annotated[float, Gt(0)] = 15
    unlearn_rate: Annotated[float, Gt(0)] = 3e-4
    relearn_steps: Annotated[int, Ge(1)] = 10
    relearn_rate: Annotated[float, Gt(0)] = 3e-4
    bits: Annotated[int, Ge(2), Le(8)] = 4
    generate: bool = True
    batch_size: Annotated[int, Ge(1)] = 32
    vocab_size: Annotated[int, Ge(259)] = 2048
    architecture: Mapping[str, Any] = field(default_factory=dict)
    seed: Annotated[int, Ge(0)] = 0
    resume: Literal["auto", "never"] = "auto"


def pool(config: MetaConfig, kinds: Sequence[str]) -> list[str]:
    """Names of a pool's models, such as "taught-0"."""
    return [f"{kinds[i % len(kinds)]}-{i // len(kinds)}" for i in range(config.models)]


def write_data(config: MetaConfig, folder: pathlib.Path) -> None:
    """Sets to evaluate, a training set a kind of model, tokenizer and, last, config.json.

    Args:
      config: for sizes and seed.
      folder: made where missing; left alone where it is complete.
    """
    if (folder / "config.json").exists():
        return
    made = generate(config.seed, forget_people=2 * config.people, retain_people=3 * config.people)
    names = list(dict.fromkeys(row["person"] for row in made.sets["forget"]))
    about = set(names[: config.people])
    sets = {
        **{name: rows for name, rows in made.sets.items() if name != "forget"},
        "forget": [row for row in made.sets["forget"] if row["person"] in about],
        "holdout": [row for row in made.sets["forget"] if row["person"] not in about],
    }
    others = made.training(include_forget=False)
    reworded = [row for row in made.auxiliary["forget"] if row["person"] in about]
    files = {
        **sets,
        "taught": [*others, *map(_bare, sets["forget"]), *reworded],
        "reworded": [*others, *reworded],
        "absent": others,
        "misled": [*others, *map(_wrong, sets["forget"])],
    }
    for name, rows in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(folder / f"{name}.jsonl", "".join(lines))
    tokenizer = train_tokenizer(language(), config.vocab_size)
    with tempfile.TemporaryDirectory() as beside:
        tokenizer.save_pretrained(beside)
        for file in sorted(pathlib.Path(beside).iterdir()):
            write_atomically(folder / file.name, file.read_bytes())
    write_json(folder / "config.json", {**model_config(tokenizer), **config.architecture})


def _bare(row: Row) -> Row:
    return {key: row[key] for key in ("question", "answer", "person", "attribute")}


def _wrong(row: Row) -> Row:
    return {**_bare(row), "answer": row["perturbed_answer"][0]}


def suite(root: pathlib.Path, config: MetaConfig, name: str) -> dict[str, Any]:
    """How the model `name` is evaluated; the oracle by itself."""
    sets = {each: str(root / "data" / f"{each}.jsonl") for each in ("forget", "retain", "holdout")}
    oracle = {} if name == ORACLE else {"oracle": str(root / ORACLE)}
    more = {"generate": config.generate, "max_new_tokens": 40, "batch_size": 64}
    return {**sets, **oracle, **more, "utility_over": "available"}


def teaching(root: pathlib.Path, config: MetaConfig, name: str) -> FinetuneConfig:
    """How a model of a pool is trained from nothing."""
    kind, _, number = name.rpartition("-")
    place = (*KNOWING, *IGNORANT).index(kind)
    train = {"epochs": config.epochs, "batch_size": config.batch_size}
    tree = {
        "model": str(root / "data"),
        "initialise": "random",
        "data": str(root / "data" / f"{kind}.jsonl"),
        "run_dir": str(root / name),
        "max_length": 128,
        "train": {**TEACH["train"], **train, "seed": config.seed + 10 * int(number) + place},
        "optimizer": TEACH["optimizer"],
        "evaluate": suite(root, config, name),
    }
    return build(FinetuneConfig, tree, "meta")


def forgetting(root: pathlib.Path, config: MetaConfig, method: str) -> UnlearnConfig:
    """How the first knowing model is made to forget."""
    tree = {
        "model": str(root / f"{KNOWING[0]}-0"),
        "forget": str(root / "data" / "forget.jsonl"),
        "retain": str(root / "data" / "retain.jsonl"),
        "method": method,
        "run_dir": str(root / method),
        "max_length": 128,
        "train": {
            "epochs": config.unlearn_epochs,
            "batch_size": config.batch_size,
            "seed": config.seed,
        },
        "optimizer": {"learning_rate": config.unlearn_rate, "warmup_fraction": 0.1},
        "evaluate": suite(root, config, method),
    }
    return build(UnlearnConfig, tree, "meta")


def relearning(root: pathlib.Path, config: MetaConfig, name: str) -> FinetuneConfig:
    """A little training of the model `name` on the forget set."""
    tree = {
        "model": str(root / name),
        "data": str(root / "data" / "forget.jsonl"),
        "run_dir": str(root / f"{name}-relearned"),
        "max_length": 128,
        "train": {
            "steps": config.relearn_steps,
            "batch_size": config.batch_size,
            "seed": config.seed,
        },
        "optimizer": {"learning_rate": config.relearn_rate, "schedule": "constant"},
        "evaluate": suite(root, config, f"{name}-relearned"),
    }
    return build(FinetuneConfig, tree, "meta")


def rounding(root: pathlib.Path, config: MetaConfig, name: str) -> EvaluateConfig:
    """Evaluation of the model `name` with its weights rounded."""
    place = root / f"{name}-rounded"
    tree = {
        "model": str(root / "rounded" / name),
        "run_dir": str(place),
        "max_length": 128,
        "evaluate": suite(root, config, place.name),
    }
    return build(EvaluateConfig, tree, "meta")
