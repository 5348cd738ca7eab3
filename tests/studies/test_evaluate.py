"""What an evaluation writes: results with intervals, a line an example, nothing that is stale."""

import json
import shutil

import numpy as np
import pytest
from studies import tiny

from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics
from jaxforget.studies import evaluate, unlearn


def settings(world, run, **suite):
    data = world / "data"
    return {
        "model": str(world / "base"),
        "run_dir": str(run),
        "max_length": 128,
        "evaluate": {
            "forget": str(data / "forget.jsonl"),
            "holdout": {"path": str(data / "retain.jsonl"), "rows": "0:5"},
            "max_new_tokens": 4,
            "limit": 5,
            **suite,
        },
    }


def lines(run):
    return [json.loads(line) for line in (run / "examples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def first(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("evaluated") / "run"
    return run, evaluate(settings(world, run, gradient_norms=True)).metrics


def test_metrics_can_be_made_again_from_the_examples_file(first):
    run, found = first
    results, sides = json.loads((run / "results.json").read_text()), {}
    for name in ("forget", "holdout"):
        sides[name] = [line for line in lines(run) if line["set"] == name]
        assert [line["row"] for line in sides[name]] == [0, 1, 2, 3, 4]
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus", "gradient_norm"):
        members, others = ([line[f"mia_{attack}"] for line in side] for side in sides.values())
        auc = metrics.roc_auc(np.asarray(members), np.asarray(others))
        assert found[f"mia_{attack}_auc"] == pytest.approx(auc)
        low, high = results["evaluation"]["intervals"][f"mia_{attack}_auc"]
        assert 0 <= low <= auc <= high <= 1
    for key in ("extraction_strength", "exact_memorization"):
        assert found[key] == pytest.approx(np.mean([line[key] for line in sides["forget"]]))
    assert all({"prompt", "truth", "answer", "rouge"} <= set(line) for line in sides["forget"])
    assert "answer" not in sides["holdout"][0] and results["generations"]


def test_another_run_takes_it_as_its_oracle(world, first, tmp_path):
    run, theirs = first
    again = settings(world, tmp_path / "run", oracle=str(run), generate=False)
    found = evaluate(again).metrics
    assert found["forget_quality"] == pytest.approx(1)
    assert found["privleak"] == pytest.approx(0) and found["mia_reference_auc"] == 0.5
    assert found["mia_min_k_auc"] == theirs["mia_min_k_auc"]


def test_a_run_that_is_no_longer_evaluated_keeps_no_examples(world, tmp_path):
    suite = settings(world, tmp_path)["evaluate"] | {"generate": False}
    train = {"steps": 2, "save_every": 0}
    run = tmp_path / "run"
    unlearn(tiny.config(world, run, train=train, evaluate=suite))
    assert {line["set"] for line in lines(run)} == {"forget", "holdout"}
    shutil.copy(run / "results.json", tmp_path)
    unlearn(tiny.config(world, run, train=train))
    assert not (run / "examples.jsonl").exists()
    assert json.loads((run / "results.json").read_text())["metrics"] == {}


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ({"forget": None}, "evaluate.holdout: it is compared with evaluate.forget"),
        ({"holdout": None, "gradient_norms": True}, "evaluate.gradient_norms: they are compared"),
        ({"forget": None, "holdout": None}, "evaluate: names no set. Allowed: forget, retain"),
    ],
)
def test_impossible_suites_are_refused_before_anything_is_computed(world, tmp_path, suite, message):
    with pytest.raises(UserError, match=message):
        evaluate(settings(world, tmp_path / "run", **suite))


def test_eight_devices_find_what_one_finds(world, tmp_path):
    """Also the gradients' norms and the answers, whatever the mesh."""
    suite = {"gradient_norms": True, "retain": str(world / "data" / "retain.jsonl")}
    found = {}
    for name, sizes in {"one": {"data": 1}, "all": {"data": 2, "fsdp": 2, "tensor": 2}}.items():
        given = settings(world, tmp_path / name, **suite) | {"mesh": sizes}
        found[name] = evaluate(given).metrics
    assert found["one"].keys() == found["all"].keys()
    for name, value in found["one"].items():
        other = found["all"][name]
        assert other == value or other == pytest.approx(value, rel=1e-5, abs=1e-6), name
