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
from jaxforget import cli, methods
from jaxforget.config import SweepConfig, UnlearnConfig, as_tree, build, load, overridden
from jaxforget.data import fictitious
from jaxforget.engine.errors import UserError
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.engine.run_dir import RunDirectory, read_metrics
from jaxforget.studies.frontier import best_of, frontier_of
from jaxforget.studies.settings import alike, members_of, numbers
from jaxforget.studies.sweep import table_of


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
    for index in members:
        results = json.loads((out / "results.json").read_text())
        member = results["members"][index]
        tree = overridden(config, member["overrides"])
        alone = jf.unlearn({**tree, "run_dir": str(out.parent / f"alone{index}")})
        mine, single = (
            read_metrics(folder / "metrics.jsonl")
            for folder in (out / "members" / str(index), alone.run_dir.path)
        )
        assert [row["step"] for row in mine] == [row["step"] for row in single]
        assert set(mine[-1]) == set(single[-1]) - {"tokens_per_second", "step_ms"}
        for key in set(mine[-1]) - {"time"}:
            got, expected = ([row[key] for row in rows] for rows in (mine, single))
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=key)
        for key in ("forget_prob", "retain_prob", "forget_truth_ratio"):
            np.testing.assert_allclose(member["metrics"][key], alone.metrics[key], rtol=1e-4)
        if index == results["best"]:
            best = jf.load(str(out)).params
            np.testing.assert_allclose(flat(best), flat(alone.params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [None, 3, 4])
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
    assert (out / "report.html").read_text().count("best:") >= 1
    same_as_single_runs(world, out, config, {0, 3, results["best"]})


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


def test_what_changes_the_program_gets_one_of_its_own(world, tmp_path):
    out, config = tmp_path / "sweep", base(world)
    grid = {"lora.rank": [2, 4], "method.name": ["graddiff", "npo"], "train.steps": [2]}
    jf.sweep({"base": config, "grid": grid, "run_dir": str(out)})
    results = json.loads((out / "results.json").read_text())
    assert results["programs"] == 4 and len(results["members"]) == 4
    same_as_single_runs(world, out, config, [1, 2])


@pytest.mark.slow
def test_numbers_that_are_branched_on_get_programs_of_their_own(world, tmp_path):
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
    jf.sweep({**config, "run_dir": str(cut)})
    shutil.rmtree(cut / "programs" / "0" / "checkpoints" / "4")
    shutil.rmtree(cut / "members" / "1")
    (cut / "results.json").unlink()
    shutil.rmtree(cut / "model")
    jf.sweep({**config, "run_dir": str(cut)})
    one, other = (json.loads((each / "results.json").read_text()) for each in (whole, cut))
    assert one["members"] == other["members"] and one["best"] == other["best"]
    np.testing.assert_array_equal(flat(jf.load(str(whole)).params), flat(jf.load(str(cut)).params))


def test_seeds_that_decide_the_data_get_programs_of_their_own(world, tmp_path):
    # refusals are drawn by the seed, and so is the model that never learned
    for name in ("po", "bad_teacher"):
        out, config = tmp_path / name / "sweep", base(world, method=name)
        config["train"] = {"steps": 2, "batch_size": 4, "log_every": 2}
        jf.sweep({"base": config, "grid": {"train.seed": [0, 5]}, "run_dir": str(out)})
        assert json.loads((out / "results.json").read_text())["programs"] == 2
        same_as_single_runs(world, out, config, [1])


def test_starting_models_may_differ_and_the_export_is_as_configured(world, tmp_path):
    from transformers import AutoTokenizer

    from jaxforget.models.language_model import from_scratch

    config = json.loads((world / "model" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(world)
    from_scratch({**config, "num_hidden_layers": 1}, tokenizer, 1).save_pretrained(tmp_path / "m")
    out, config = tmp_path / "sweep", base(world, method="ga", export_dtype="bfloat16")
    config["train"] = {"steps": 2, "batch_size": 4, "log_every": 2}
    models = [str(world / "model"), str(tmp_path / "m")]
    jf.sweep({"base": config, "grid": {"model": models}, "run_dir": str(out)})
    results = json.loads((out / "results.json").read_text())
    assert results["programs"] == 2
    exported = jf.load(str(out))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(exported.params)} == {"bfloat16"}
    assert exported.config.layers == (2, 1)[results["best"]]
    config["export_dtype"] = None
    jf.sweep({"base": config, "grid": {"model": models}, "run_dir": str(tmp_path / "again")})
    same_as_single_runs(world, tmp_path / "again", config, [0, 1])


def test_a_setting_that_diverges_is_told_and_the_others_go_on(world, tmp_path):
    out, config = tmp_path / "sweep", base(world, method="ga")
    config["train"] = {"steps": 4, "batch_size": 4, "log_every": 1, "max_skipped": 2}
    grid = {"optimizer.learning_rate": [1e-3, 1e30]}
    jf.sweep({"base": config, "grid": grid, "run_dir": str(out)})
    results = json.loads((out / "results.json").read_text())
    good, bad = results["members"]
    assert results["programs"] == 1 and results["best"] == 0 and results["frontier"] == [0]
    assert good["refused_steps"] == 0 and "failed" not in good
    assert bad["refused_steps"] >= 2 and "not finite" in bad["failed"] and not bad["metrics"]
    assert "(failed) learning_rate=1e+30" in (out / "report.html").read_text()
    assert [row[""] for row in table_of(RunDirectory(out))] == ["*", "!"]
    same_as_single_runs(world, out, config, [0])
    with pytest.raises(UserError, match="stopped at step .: the last 2 steps"):
        grid = {"optimizer.learning_rate": [1e29, 1e30]}
        jf.sweep({"base": config, "grid": grid, "run_dir": str(tmp_path / "all")})


def test_a_killed_sweep_with_other_settings_is_refused(world, tmp_path):
    config = {"base": base(world, method="ga"), "run_dir": str(tmp_path / "s")}
    config["base"]["train"] = {"steps": 2, "batch_size": 4}
    jf.sweep({**config, "grid": {"method.forget_weight": [0.5, 1.0]}})
    (tmp_path / "s" / "results.json").unlink()  # as if killed after training
    with pytest.raises(UserError, match="of other settings or data"):
        jf.sweep({**config, "grid": {"method.forget_weight": [0.5, 2.0]}})


def test_a_finished_sweep_is_not_made_again(world, tmp_path):
    config = {"base": base(world, method="ga"), "grid": {"train.steps": [1]}}
    config["run_dir"] = str(tmp_path / "s")
    first = jf.sweep(config)
    shutil.rmtree(tmp_path / "s" / "members")  # nothing of it is read
    again = jf.sweep(config)
    assert first.metrics == again.metrics
    np.testing.assert_array_equal(flat(first.params), flat(again.params))


def test_overrides_do_not_depend_on_their_order_and_numbers_may_be_written_anyhow(world):
    config = {"base": base(world), "run_dir": "r"}
    grid = {"method.beta": ["1e-2", 2], "method.name": ["simnpo"], "method.margin": [1]}
    members = members_of(build(SweepConfig, {**config, "grid": grid}))
    methods = [dict(member.config.method) for member in members]
    assert methods == [{"name": "simnpo", "beta": b, "margin": 1} for b in ("1e-2", 2)]
    assert [numbers(member.config)["method.beta"] for member in members] == [0.01, 2.0]
    (together,) = alike(members)  # however they are written, they are real numbers
    assert [member.index for member in together] == [0, 1]
    # a setting that leaves a number at its default belongs with the others
    some = [{"optimizer.learning_rate": 1e-3}, {"method.beta": 0.5}]
    assert len(alike(members_of(build(SweepConfig, {**config, "settings": some})))) == 1


def test_the_grid_can_be_set_on_the_command_line(world, tmp_path):
    given = ["base.model=m", "base.forget=f", "run_dir=r", "grid.method.beta=[0.1, 0.2]"]
    config = load(SweepConfig, None, given)
    assert config.grid == {"method.beta": (0.1, 0.2)} and config.base["model"] == "m"


def traced_of(world, tmp_path, method):
    """(starting model, scored sets, configuration, its numbers that can be traced)."""
    from jaxforget.studies.common import load_model
    from jaxforget.studies.member import traceable
    from jaxforget.studies.reference import with_reference
    from jaxforget.studies.roles import read_roles

    tree = base(world, method=method, lora=None, general=str(world / "world_facts.jsonl"))
    tree["train"] = {"steps": 3, "batch_size": 2}
    tree["optimizer"] = {"learning_rate": 1e-2, "weight_decay": 0.1, "schedule": "constant"}
    config = build(UnlearnConfig, {**tree, "run_dir": str(tmp_path)})
    lm, chosen = load_model(config), methods.from_config(config.method)
    run = RunDirectory(tmp_path)
    sets = read_roles(config, chosen, lm, run)
    sets = with_reference(lm, sets, chosen.needs, folder=run.cache)
    mesh = make_mesh(MeshConfig(data=1))
    return lm, sets, config, traceable(lm, sets, config, list(numbers(config)), mesh)


BOTH = ["optimizer.learning_rate", "optimizer.weight_decay"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"name": "npo"}, ["method.beta", "method.forget_weight", "method.retain_weight"]),
        ({"name": "rmu", "layer": 0}, ["method.coefficient"]),  # not the layer, not the seed
        ({"name": "ofmu"}, []),  # it leaves out what a beta or rho of 0 makes needless
    ],
)
def test_numbers_that_are_branched_on_are_not_traced(world, tmp_path, method, expected):
    *_, found = traced_of(world, tmp_path, method)
    assert set(found) >= {*BOTH, *expected}
    assert not {"method.beta", "method.layer", "method.seed"} & (set(found) - set(expected))


TRAINED = [
    name
    for name, recipe in methods.RECIPES.items()
    if (made := methods.get(name)).objective and not made.edit and not made.prepare
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_traced_numbers_of_every_method_give_the_steps_of_given_ones(world, tmp_path, name):
    from jaxforget.data.batches import PairedBatches
    from jaxforget.studies.inputs import joined, reference_heads
    from jaxforget.studies.member import member_state, member_step
    from jaxforget.studies.training import divide

    layer = {"layer": 0} if name.endswith("rmu") else {}
    lm, sets, config, keys = traced_of(world, tmp_path, {"name": name, **layer})
    now = numbers(config)
    wanted = {key: 1.5 if key == "method.growth" else 0.7 * now[key] for key in keys}
    given = build(UnlearnConfig, overridden(as_tree(config), wanted))
    method = methods.from_config(config.method)
    chosen = {role: sets[role] for role in method.needs.roles}
    batches = PairedBatches(chosen, 2, 0, aligned=method.needs.aligned).plan(3)
    trained, frozen = divide(lm, None, config.train)
    mesh = make_mesh(MeshConfig(data=1))
    rest = {"frozen": frozen, "heads": reference_heads(lm, method, mesh, 0)}
    ends = []
    for settings, hyper in ((given, {}), (config, {k: np.float32(v) for k, v in wanted.items()})):

        @jax.jit
        def step(hyper, state, rows, reference, settings=settings):
            return member_step(lm, settings, 3, hyper, state, rest, rows, reference)

        state = member_state(settings, hyper, trained, 0, 3)
        for number in range(3):
            rows, columns = batches.at(number)
            state, metrics = step(hyper, state, rows, joined(columns, {}))
        assert np.isfinite(metrics["loss"]) and not metrics["skipped"]
        ends.append(state.params)
    moved = np.abs(flat(ends[0]) - flat(trained)).max()
    assert moved > 1e-3
    np.testing.assert_allclose(flat(ends[1]), flat(ends[0]), atol=1e-4 * moved)


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
        ({"settings": [{"method.beta": 1}]}, "settings.0.method.beta: the grid varies it"),
        ({"grid": {"run_dir": ["a", "b"]}}, "run_dir: belongs to the sweep"),
        ({"base": {"optimizer": {"name": "sgd", "weight_decay": 0.1}}}, "weight_decay: sgd"),
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
