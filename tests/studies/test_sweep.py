"""Populations: the numbers of single runs, from as few programs as there can be."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxforget as jf
from jaxforget import cli
from jaxforget.data import fictitious
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import read_metrics
from jaxforget.studies.frontier import best_of, frontier_of


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data and a random model of two layers."""
    from transformers import AutoTokenizer

    from jaxforget.models.language_model import from_scratch

    folder = tmp_path_factory.mktemp("world")
    fictitious.write(folder, forget_people=1, retain_people=12, known_people=4, facts=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8, "intermediate_size": 48}
    from_scratch(config, tokenizer, 0).save_pretrained(folder / "model")
    return folder


def base(world, **more):
    return {
        "model": str(world / "model"),
        "forget": str(world / "forget.jsonl"),
        "retain": {"path": str(world / "retain.jsonl"), "rows": "0:16"},
        "method": "npo",
        "max_length": 64,
        "lora": {"rank": 4, "alpha": 8},
        "train": {"steps": 4, "batch_size": 4, "log_every": 2, "save_every": 2},
        "optimizer": {"learning_rate": 1e-2, "warmup_fraction": 0.25},
        "evaluate": {
            "forget": str(world / "forget.jsonl"),
            "retain": str(world / "retain.jsonl"),
            "generate": False,
            "limit": 6,
            "utility_over": "available",
        },
        **more,
    }


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def same_as_single_runs(world, out, config, members):
    """Every member's metrics and the best one's weights are those of a run of its own."""
    from jaxforget.config import overridden

    for index in members:
        results = json.loads((out / "results.json").read_text())
        member = results["members"][index]
        tree = overridden(config, member["overrides"])
        alone = jf.unlearn({**tree, "run_dir": str(out.parent / f"alone{index}")})
        for key in ("forget_prob", "retain_prob", "forget_truth_ratio"):
            np.testing.assert_allclose(member["metrics"][key], alone.metrics[key], rtol=1e-4)
        if index == results["best"]:
            best = jf.load(str(out)).params
            np.testing.assert_allclose(flat(best), flat(alone.params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "at_once",
    [pytest.param(None, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)],
)
def test_members_are_the_single_runs(world, tmp_path, at_once):
    out = tmp_path / "sweep"
    grid = {"optimizer.learning_rate": [3e-3, 3e-2], "method.beta": [0.1, 0.7]}
    config = base(world)
    sweep = {"base": config, "grid": grid, "run_dir": str(out), "at_once": at_once}
    result = jf.sweep(sweep)
    results = json.loads((out / "results.json").read_text())
    assert results["programs"] == 1 and len(results["members"]) == 4
    assert results["best"] in results["frontier"] or len(results["frontier"]) > 0
    assert result.metrics == results["members"][results["best"]]["metrics"]
    rates = [each["overrides"]["optimizer.learning_rate"] for each in results["members"]]
    assert sorted(set(rates)) == [3e-3, 3e-2]
    (folder,) = (out / "programs").iterdir()
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 4]
    assert all(np.isfinite(rows[-1][f"loss/{member}"]) for member in range(4))
    assert (out / "report.html").read_text().count("best:") >= 1
    same_as_single_runs(world, out, config, [0, 3, results["best"]])


def test_the_command_prints_every_setting_and_marks_the_best(world, tmp_path, capsys, monkeypatch):
    config = {
        "base": base(world),
        "grid": {"method.beta": [0.1, 0.7]},
        "run_dir": str(tmp_path / "s"),
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "argv", ["jaxforget", "sweep", str(tmp_path / "sweep.yaml")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "beta" in printed and "0.7" in printed and printed.count("*") == 2
    assert "best, + on the frontier" in printed


def test_seeds_have_their_own_data_and_adapters(world, tmp_path):
    out, config = tmp_path / "sweep", base(world)
    jf.sweep({"base": config, "grid": {"train.seed": [0, 5]}, "run_dir": str(out)})
    assert json.loads((out / "results.json").read_text())["programs"] == 1
    same_as_single_runs(world, out, config, [0, 1])


def test_a_setting_that_diverges_stops_no_other(world, tmp_path):
    out, config = tmp_path / "sweep", base(world)
    config["train"] = {**config["train"], "max_skipped": 2}
    grid = {"optimizer.learning_rate": [3e-3, 1e30]}
    jf.sweep({"base": config, "grid": grid, "run_dir": str(out)})
    results = json.loads((out / "results.json").read_text())
    good, bad = results["members"]
    assert results["best"] == 0 and results["frontier"] == [0]
    assert not good["diverged"] and good["refused_steps"] == 0
    assert bad["diverged"] and bad["refused_steps"] >= 2 and bad["metrics"] == {}
    assert "1e+30 diverged" in (out / "log.txt").read_text()
    same_as_single_runs(world, out, config, [0])
    with pytest.raises(UserError, match="every setting diverged"):
        grid = {"optimizer.learning_rate": [1e30]}
        jf.sweep({"base": config, "grid": grid, "run_dir": str(tmp_path / "none")})


def test_whole_models_and_optimizers_without_adapters(world, tmp_path):
    out = tmp_path / "sweep"
    config = base(world, method="kl_min", lora=None)
    config["optimizer"] = {"learning_rate": 1e-3, "weight_decay": 0.1}
    settings = [
        {"optimizer.learning_rate": 1e-3},
        {"optimizer.learning_rate": 3e-3, "optimizer.weight_decay": 0.5},
    ]
    jf.sweep({"base": config, "settings": settings, "run_dir": str(out)})
    same_as_single_runs(world, out, config, [0, 1])


@pytest.mark.slow
def test_what_changes_the_program_gets_one_of_its_own(world, tmp_path):
    out, config = tmp_path / "sweep", base(world)
    grid = {"lora.rank": [2, 4], "method.name": ["graddiff", "npo"], "train.steps": [2]}
    jf.sweep({"base": config, "grid": grid, "run_dir": str(out)})
    results = json.loads((out / "results.json").read_text())
    assert results["programs"] == 4 and len(results["members"]) == 4
    same_as_single_runs(world, out, config, [1, 2])


@pytest.mark.slow
def test_numbers_that_are_branched_on_are_told_apart(world, tmp_path):
    out = tmp_path / "sweep"
    method = {"name": "ofmu", "beta": 0.1, "inner_steps": 1, "rho": 0.0}
    config = base(world, method=method, train={"steps": 2, "batch_size": 4})
    grid = {"method.beta": [0.0, 0.5], "optimizer.learning_rate": [1e-3, 1e-2]}
    jf.sweep({"base": config, "grid": grid, "run_dir": str(out)})
    assert json.loads((out / "results.json").read_text())["programs"] == 2
    same_as_single_runs(world, out, config, [1, 3])


def test_a_killed_sweep_continues(world, tmp_path):
    config = {"base": base(world), "grid": {"method.beta": [0.1, 0.7]}}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    jf.sweep({**config, "run_dir": str(whole)})
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "programs" / "0" / "checkpoints" / "4")
    shutil.rmtree(cut / "members" / "1")
    (cut / "results.json").unlink()
    shutil.rmtree(cut / "model")
    jf.sweep({**config, "run_dir": str(cut)})
    one, other = (json.loads((each / "results.json").read_text()) for each in (whole, cut))
    assert one["members"] == other["members"] and one["best"] == other["best"]
    np.testing.assert_array_equal(flat(jf.load(str(whole)).params), flat(jf.load(str(cut)).params))


@pytest.mark.slow
def test_sixteen_adapters_are_sixteen_single_runs(world, tmp_path):
    out, config = tmp_path / "sweep", base(world)
    grid = {
        "optimizer.learning_rate": [1e-3, 3e-3, 1e-2, 3e-2],
        "method.beta": [0.1, 0.7],
        "method.retain_weight": [0.5, 2.0],
    }
    jf.sweep({"base": config, "grid": grid, "run_dir": str(out)})
    assert json.loads((out / "results.json").read_text())["programs"] == 1
    same_as_single_runs(world, out, config, range(16))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"grid": {}}, "nothing to vary"),
        ({"grid": {"method.beta": []}}, "grid.method.beta: has no values"),
        ({"grid": {"method.betta": [0.1]}}, "method.betta.*Did you mean 'beta'"),
        ({"grid": {"train.step": [1]}}, "train.step.*Did you mean 'steps'"),
        ({"grid": {"method.name": ["ssd"]}}, "ssd edits the weights"),
        ({"grid": {"method.name": ["salun"]}}, "mask measured on the data"),
        ({"base": {"evaluate": None}}, "base.evaluate: a sweep compares"),
        ({"base": {"run_dir": "x"}}, "base.run_dir: belongs to the sweep"),
    ],
)
def test_bad_sweeps_are_refused_before_anything_is_written(world, tmp_path, change, says):
    config = {"base": base(world), "grid": {"method.beta": [0.1]}, "run_dir": str(tmp_path / "s")}
    inner = {**config["base"], **change.get("base", {})}
    if inner["method"] == "npo" and "method.name" in change.get("grid", {}):
        inner["lora"] = None
    with pytest.raises(UserError, match=says):
        jf.sweep({**config, **change, "base": inner})
    assert not (tmp_path / "s").exists()


POINTS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12)


@given(POINTS)
def test_the_frontier_is_what_nothing_beats(points):
    rows = [{"forget_prob": x, "retain_prob": y} for x, y in points]
    frontier = frontier_of(rows, "retain_prob")
    assert frontier
    for i, (x, y) in enumerate(points):
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert (i in frontier) == (not beaten)
    # without an oracle more of both is never worse
    best = best_of(rows, "retain_prob", None)
    x, y = points[best]
    assert not any(a < x and b > y for a, b in points)


def test_the_best_is_the_nearest_to_the_oracle_and_gaps_are_passed_over():
    rows = [{"forget_prob": x, "model_utility": y} for x, y in ((0.0, 0.1), (0.2, 0.6), (None, 1))]
    assert best_of(rows, "model_utility", {"forget_prob": 0.15, "model_utility": 0.6}) == 1
    assert best_of(rows[2:], "model_utility", None) is None
    assert frontier_of([{"forget_prob": float("nan"), "model_utility": 1.0}], "model_utility") == []
