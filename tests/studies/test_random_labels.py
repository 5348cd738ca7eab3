"""A task forgotten by uniformly random labels: what its card promises (arXiv 2409.02228)."""

import json

import numpy as np
import pytest
from studies import tiny

from jaxforget.data.alternates import random_choices
from jaxforget.data.sources import DataSource, load_records
from jaxforget.engine.errors import UserError
from jaxforget.studies import evaluate, finetune, unlearn

COLOURS = ["red", "blue", "green", "grey"]
COUNT = 16
NAMES = "Ada Bo Cleo Dov Eli Fay Gus Hal Ida Jo Kit Leo Mia Ned Oda Pat Quin".split()


def ask(kind, count=COUNT):
    """Questions of one kind, each with a right colour."""
    rng = np.random.default_rng(len(kind))
    return [
        {
            "question": f"What colour is the {kind} of {NAMES[index]}?",
            "choices": COLOURS,
            "answer": COLOURS[rng.integers(4)],
        }
        for index in range(count)
    ]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def study(world, tmp_path_factory):
    """(root, files by kind, metrics of the taught model and of the one that forgot)."""
    root = tmp_path_factory.mktemp("labels")
    files = {kind: write(root / f"{kind}.jsonl", ask(kind)) for kind in ("house", "boat")}
    taught = {
        "model": str(world / "base"),
        "data": list(files.values()),
        "run_dir": str(root / "taught"),
        "max_length": 64,
        "train": {"steps": 200, "batch_size": 16},
        "optimizer": {"learning_rate": 3e-3},
        "mesh": {"data": 1},
    }
    finetune(taught)
    changes = {
        "model": str(root / "taught"),
        "forget": files["house"],
        "retain": files["boat"],
        "alternate": "random_choices",
        "method": "random_label",
        "max_length": 64,
        "optimizer": {"learning_rate": 3e-3},
        "train": {"steps": 120, "save_every": 0},
    }
    unlearn(tiny.settings(world, root / "forgot", **changes))
    return root, files, judged(root, files, "taught"), judged(root, files, "forgot")


def judged(root, files, name):
    base = {"base": str(root / "judged-taught")} if name == "forgot" else {}
    return evaluate(
        {
            "model": str(root / name),
            "run_dir": str(root / f"judged-{name}"),
            "max_length": 64,
            "evaluate": {"suite": "choice", "tasks": files, **base},
        }
    ).metrics


def test_the_task_falls_to_chance_and_the_other_one_stays(study):
    root, files, before, after = study
    assert before["house_accuracy"] > 0.9 and before["boat_accuracy"] > 0.9
    records = load_records(DataSource(files["house"]))
    drawn = [each.answer for each in random_choices(records, 0)]
    by_luck = np.mean([one == each.answer for one, each in zip(drawn, records, strict=True)])
    assert abs(by_luck - 0.25) < 0.2  # 16 labels drawn of four
    assert after["house_accuracy"] == pytest.approx(by_luck, abs=0.1)  # the labels are learned
    assert after["boat_accuracy"] > 0.9


def test_the_forget_ratio_is_its_formula(study):
    _, _, before, after = study
    for name in ("house", "boat"):
        lost = before[f"{name}_accuracy"] - after[f"{name}_accuracy"]
        expected = lost / (before[f"{name}_accuracy"] - 0.25)
        assert after[f"{name}_forget_ratio"] == pytest.approx(expected)
    assert after["house_forget_ratio"] > 0.6 and abs(after["boat_forget_ratio"]) < 0.1


def test_an_untouched_model_has_forgotten_nothing(study, tmp_path):
    root, files, before, _ = study
    found = evaluate(
        {
            "model": str(root / "taught"),
            "run_dir": str(tmp_path / "again"),
            "max_length": 64,
            "evaluate": {"suite": "choice", "tasks": files, "base": str(root / "judged-taught")},
        }
    ).metrics
    assert found["house_forget_ratio"] == found["boat_forget_ratio"] == 0
    assert found["house_entropy"] == before["house_entropy"] < 0.2


@pytest.mark.parametrize(
    ("kind", "count", "row"), [("house", COUNT + 1, COUNT), ("shed", COUNT, 0)]
)
def test_a_base_of_other_questions_is_refused(study, tmp_path, kind, count, row):
    root, files, *_ = study
    more = write(tmp_path / "more.jsonl", ask(kind, count))
    tree = {
        "model": str(root / "taught"),
        "run_dir": str(tmp_path / "again"),
        "evaluate": {
            "suite": "choice",
            "tasks": {"house": more},
            "base": str(root / "judged-taught"),
        },
    }
    with pytest.raises(UserError, match=f"row {row} of .*judge the base with this suite"):
        evaluate(tree)
