"""Evaluation during training and the choice of the best model."""

import json
import shutil

import numpy as np
import pytest
from studies import tiny

import jaxforget as jf
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import read_metrics
from jaxforget.studies.selection import chosen

ROWS = [
    {"step": 2, "forget_prob": 0.9, "model_utility": 0.9, "retain_prob": 0.9},
    {"step": 4, "forget_prob": 0.2, "model_utility": 0.8, "retain_prob": 0.6},
    {"step": 6, "forget_prob": 0.0, "model_utility": 0.3, "retain_prob": 0.7},
    {"step": 8, "forget_prob": 0.0, "model_utility": None, "retain_prob": 0.7},
]


@pytest.mark.parametrize(
    "select, rows, oracle, index",
    [
        ("trade_off", ROWS[:3], None, 1),
        ("trade_off", ROWS[:3], {"forget_prob": 0.8, "model_utility": 0.9}, 0),
        ("model_utility", ROWS, None, 0),
        ("-forget_prob", ROWS, None, 2),
        ("-model_utility", ROWS, None, 2),
        ("model_utility", ROWS[3:], None, None),
    ],
)
def test_the_best_row_is_chosen(select, rows, oracle, index):
    assert chosen(rows, select, oracle) == index


def test_a_metric_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(UserError, match="no metric 'utility'. Allowed: trade_off, forget_prob,"):
        chosen(ROWS, "utility")


def suite(world):
    sets = {name: str(world / "data" / f"{name}.jsonl") for name in ("forget", "retain")}
    return {**sets, "generate": False, "limit": 6, "utility_over": "available"}


def run(world, out, **train):
    method = {"name": "graddiff", "forget_weight": 0.3}
    changes = {"train": {"steps": 6, "save_every": 2, **train}, "evaluate": suite(world)}
    config = tiny.config(world, out, method=method, **changes, optimizer={"learning_rate": 3e-3})
    return jf.unlearn(config)


@pytest.fixture(scope="module")
def watched(world, tmp_path_factory):
    """A run evaluated every second step whose retain probability decides."""
    out = tmp_path_factory.mktemp("watched") / "run"
    return run(world, out, evaluate_every=2, select="-retain_prob"), out


def test_evaluations_are_kept_and_the_best_model_is_exported(world, watched, tmp_path):
    result, out = watched
    rows = read_metrics(out / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6]
    least = min(rows, key=lambda row: row["retain_prob"])
    results = json.loads((out / "results.json").read_text())
    assert results["selected_step"] == least["step"]
    for name, value in results["metrics"].items():
        if value is not None:
            np.testing.assert_allclose(value, least[name], rtol=1e-6)
    alone = jf.evaluate(
        {
            "model": str(out),
            "run_dir": str(tmp_path / "alone"),
            "evaluate": suite(world),
            "max_length": 128,
        }
    )
    for name, value in alone.metrics.items():
        if value is not None:
            np.testing.assert_allclose(value, least[name], rtol=1e-6)


def test_watching_changes_nothing_but_what_is_exported(world, watched, tmp_path):
    bare = run(world, tmp_path / "bare")
    mine = tiny.rows(watched[1])
    assert mine == tiny.rows(tmp_path / "bare")
    last = read_metrics(watched[1] / "evaluations.jsonl")[-1]
    np.testing.assert_allclose(bare.metrics["forget_prob"], last["forget_prob"], rtol=1e-6)


@pytest.mark.parametrize("step", [2, 4])
def test_a_killed_run_sees_and_chooses_the_same(world, watched, tmp_path, step):
    copy = tiny.only_checkpoint(watched[1], tmp_path / "copy", step)
    if step == 2:  # killed before a better one was seen
        shutil.rmtree(copy / "best")
        jf.load(str(watched[1])).save_pretrained(copy / "best")
    again = run(world, copy, evaluate_every=2, select="-retain_prob")
    assert (copy / "evaluations.jsonl").read_text() == (
        watched[1] / "evaluations.jsonl"
    ).read_text()
    for mine, theirs in zip(
        tiny.exported(copy).values(), tiny.exported(watched[1]).values(), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert again.metrics == watched[0].metrics


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train": {"select": "trade_off"}}, "train.select: needs `evaluate`"),
        ({"train": {"evaluate_every": 2}}, "train.evaluate_every: needs `evaluate`"),
        ({"train": {"evaluate_every": -1}}, "evaluate_every: .*greater than or equal to 0"),
        ({"method": "ssd", "train": {"evaluate_every": 2}, "evaluate": {}}, "ssd takes no steps"),
        (
            {"method": "task_arithmetic", "train": {"select": "trade_off"}, "evaluate": {}},
            "task_arithmetic edits the model",
        ),
    ],
)
def test_what_cannot_be_selected_is_refused(world, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        changes = dict(changes)
        if "evaluate" in changes:
            changes["evaluate"] = suite(world)
        jf.unlearn(tiny.config(world, tmp_path / "run", **changes))
