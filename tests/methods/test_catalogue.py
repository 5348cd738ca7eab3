"""Every method of the catalogue by name: defaults, errors, and a run through the whole study."""

import dataclasses
import json
import shutil
from importlib.metadata import EntryPoint

import jax
import numpy as np
import pytest
from marks import slow_but
from methods.small_runs import run

import jaxforget as jf
from jaxforget import methods
from jaxforget.data.alternates import REFUSALS, mismatched, refusals
from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError

LAYERED = {"rmu", "adaptive_rmu"}
NEEDS_A_RECORD = {"amnesiac"}
SMALL = {
    **dict.fromkeys(LAYERED, {"layer": 1}),
    "ssd": {"alpha": 1.1},
    # exact products are of the slow tests: their program alone compiles for half a minute
    "ofmu": {"inner": "finite_difference", "outer": "finite_difference"},
}
"""What the published defaults need to fit a random model of two layers, soon."""

RUN_SOON = {
    "npo",
    "dpo",
    "kl_min",
    "undial",
    "rmu",
    "adaptive_rmu",
    "flat",
    "pdu",
    "ofmu",
    "ssd",
    "task_arithmetic",
}
"""Run from files by default: of objectives, loops and edits some each, and all that are checked
below. The steps of all others are traced, and run in slow tests."""


ALL = set(methods.names()) - NEEDS_A_RECORD


@pytest.mark.parametrize("name", slow_but(RUN_SOON, sorted(ALL)))
def test_a_method_runs_from_files_to_an_exported_model(world, tmp_path, name):
    method = {"name": name, **SMALL.get(name, {})}
    result, rows = run(world, tmp_path / "run", method)
    if methods.get(name).objective is None:
        return check_edit(world, tmp_path / "run", result)
    assert len(rows) == 3 and all(np.isfinite(row["loss"]) for row in rows)
    assert not any(row["skipped"] for row in rows)
    changed = jax.tree.map(lambda leaf: float(np.abs(leaf).sum()), result.params)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(changed))
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    if name in ("npo", "dpo"):
        np.testing.assert_allclose(rows[0]["forget"], 2 / 0.1 * np.log(2), rtol=1e-5)
    if name == "kl_min":
        assert abs(rows[0]["retain"]) < 1e-6
    if name in LAYERED:
        assert abs(rows[0]["retain"]) < 1e-9


def check_edit(world, folder, result):
    """Parameters are finite and moved, nothing was trained, and the edit's scalars are kept."""
    start = jax.tree.leaves(jf.load(str(world / "model")).params)
    after = jax.tree.leaves(result.params)
    assert all(np.isfinite(leaf).all() for leaf in after)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(start, after, strict=True))
    assert json.loads((folder / "results.json").read_text())["throughput"]["steps"] == 0
    assert (folder / "model" / "model.safetensors").exists()


MORE = {"agem": {"memory": "retain"}, "gem": {"memories": ["retain"]}, "ogd": {"rank": 2}}


# with a memory, and with a realised step
ATTACHED = {"gem", "geometric_disentangle"}


@pytest.mark.parametrize(
    "combiner", slow_but(ATTACHED, sorted(set(methods.COMBINERS) - {"weighted_sum"}))
)
def test_a_combiner_attaches_to_a_method(world, tmp_path, combiner):
    choice = {"name": combiner, **MORE.get(combiner, {})}
    _, rows = run(world, tmp_path / "run", {"name": "npo", "combiner": choice})
    assert len(rows) == 3 and all(np.isfinite(row["gradient_norm"]) for row in rows)


FINISHERS = {
    "fisher_weighted": {"damping": 0.5},
    "ignore_top_k": {},
    "keep_top_k": {"share": 0.1},
    "layer_mask": {"layers": [1]},
    "multi_step_sparse": {"period": 2},
    "path_mask": {"pattern": "mlp"},
    "saliency_mask": {"share": 0.1},
    "sign_top_k": {"share": 0.1},
}


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    """GradDiff without any finisher."""
    return run(world, tmp_path_factory.mktemp("plain") / "run", {"name": "graddiff"})[0]


# measured before the first step, and with a state
FINISHED = {"saliency_mask", "multi_step_sparse"}


@pytest.mark.parametrize("name", slow_but(FINISHED, sorted(methods.FINISHERS)))
def test_a_finisher_changes_what_a_method_does(world, plain, tmp_path, name):
    choice = {"name": name, **FINISHERS[name]}
    result, rows = run(world, tmp_path / "run", {"name": "graddiff", "finishers": [choice]})
    assert len(rows) == 3 and not any(row["skipped"] for row in rows)
    pairs = zip(jax.tree.leaves(plain.params), jax.tree.leaves(result.params), strict=True)
    assert any((a != b).any() for a, b in pairs)


def test_only_salient_weights_move(world, tmp_path):
    start = jf.load(str(world / "model")).params
    result, _ = run(world, tmp_path / "run", {"name": "salun", "share": 0.25})
    pairs = zip(jax.tree.leaves(start), jax.tree.leaves(result.params), strict=True)
    moved = sum(int((np.asarray(a) != np.asarray(b)).sum()) for a, b in pairs)
    size = sum(leaf.size for leaf in jax.tree.leaves(start))
    assert 0.15 * size < moved <= 0.25 * size + 1


def test_a_resumed_run_keeps_what_was_measured_at_the_start(world, tmp_path):
    method = {"name": "salun", "share": 0.1}
    train = {"steps": 4, "batch_size": 4, "log_every": 1, "seed": 0, "save_every": 2}
    whole, _ = run(world, tmp_path / "whole", method, train=train)
    run(world, tmp_path / "cut", method, train=train)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    shutil.rmtree(tmp_path / "cut" / "model")
    again, _ = run(world, tmp_path / "cut", method, train=train)
    pairs = zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True)
    assert all((a == b).all() for a, b in pairs)


def test_what_cannot_go_together_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="lora: ssd takes none: it changes the weights"):
        run(world, tmp_path / "a", {"name": "ssd"}, lora={"rank": 2})
    with pytest.raises(UserError, match="edits the weights without training"):
        methods.get("ssd", combiner="pcgrad")
    with pytest.raises(UserError, match="method.finishers.0: there is no 'keep_topk'"):
        methods.get("npo", finishers=["keep_topk"])
    with pytest.raises(UserError, match="method.finishers.0: keep_top_k: missing.*share"):
        methods.get("npo", finishers=["keep_top_k"])
    with pytest.raises(UserError, match="method.finishers: must be a list"):
        methods.get("npo", finishers="keep_top_k")


@pytest.mark.slow
def test_lora_trains_with_hessian_products_and_gradient_geometry(world, tmp_path):
    lora = {"rank": 2, "alpha": 4}
    for number, method in enumerate(
        ({"name": "ofmu", "inner_steps": 1, "beta": 0.5}, {"name": "npo", "combiner": "pcgrad"})
    ):
        result, _ = run(world, tmp_path / str(number), method, lora=lora)
        assert not any("lora" in str(path) for path, _ in jax.tree.leaves_with_path(result.params))


def test_alternates_are_the_same_for_equal_seeds_and_never_the_answer_itself():
    records = [Record(f"q{i}", f"a{i % 3}", i, "file") for i in range(9)]
    made = refusals(records, 0)
    assert made == refusals(records, 0) != refusals(records, 1)
    assert {each.answer for each in made} <= set(REFUSALS)
    other = mismatched(records, records, 0)
    assert [each.prompt for each in other] == [each.prompt for each in records]
    assert all(new.answer != old.answer for new, old in zip(other, records, strict=True))
    with pytest.raises(UserError, match="row 0 of file.*no other answer"):
        mismatched(records[:1], records[:1], 0)


def test_alternates_of_another_question_are_refused(world, tmp_path):
    strangers = {"alternate": str(world / "retain.jsonl")}
    with pytest.raises(UserError, match="row i of one must answer row i"):
        run(world, tmp_path / "a", {"name": "dpo"}, **strangers)
    rows = (world / "forget.jsonl").read_text().splitlines()
    (tmp_path / "swapped.jsonl").write_text("\n".join([rows[1], rows[0], *rows[2:]]))
    with pytest.raises(UserError, match="must be the same"):
        run(world, tmp_path / "b", {"name": "dpo"}, alternate=str(tmp_path / "swapped.jsonl"))


@pytest.mark.parametrize("name", methods.names())
def test_defaults_are_valid_and_every_parameter_is_used(name):
    recipe = methods.RECIPES[name]
    method = methods.get(name)
    assert method.name == name and "forget" in {*method.roles, "forget"}
    for field in dataclasses.fields(recipe.parameters):
        if field.name.endswith("_weight"):
            with pytest.raises(UserError, match=f"method.{field.name}"):
                methods.get(name, **{field.name: -1.0})


def test_what_is_not_in_the_catalogue_is_named():
    with pytest.raises(UserError, match="Did you mean 'simnpo'"):
        methods.get("simmpo")
    with pytest.raises(UserError, match="method.bta.*Did you mean 'beta'"):
        methods.get("npo", bta=1.0)
    with pytest.raises(UserError, match="combiner.*Did you mean 'pcgrad'"):
        methods.get("npo", combiner="pcgrd")
    with pytest.raises(UserError, match="method.combiner.cc: cagrad has no such key"):
        methods.get("npo", combiner={"name": "cagrad", "cc": 1})
    with pytest.raises(UserError, match="has its own"):
        methods.get("bilevel_first_order", combiner="pcgrad")
    with pytest.raises(UserError, match="name or a mapping"):
        methods.get("npo", combiner=3)


def recipe_of(build=None):
    parameters = methods.RECIPES["npo"].parameters
    return methods.Recipe("Mine", "me", "f", parameters, build or methods.RECIPES["npo"].build)


def test_a_registered_method_is_like_any_other(world, tmp_path, monkeypatch):
    monkeypatch.setattr(methods.catalogue, "_REGISTERED", {})
    methods.register("mine", recipe_of())
    assert "mine" in methods.names() and "| mine | Mine |" in methods.markdown(methods.table())
    ours, _ = run(world, tmp_path / "a", {"name": "mine", "beta": 0.3})
    theirs, _ = run(world, tmp_path / "b", {"name": "npo", "beta": 0.3})
    pairs = zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True)
    assert all((a == b).all() for a, b in pairs)
    with pytest.raises(UserError, match="there is a method 'mine' already"):
        methods.register("mine", recipe_of())


def test_what_cannot_be_registered_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(methods.catalogue, "_REGISTERED", {})
    with pytest.raises(UserError, match="a method 'npo' already"):
        methods.register("npo", recipe_of())
    with pytest.raises(UserError, match="letters, digits"):
        methods.register("my method", recipe_of())
    with pytest.raises(ZeroDivisionError):
        methods.register("broken", recipe_of(lambda parameters: 1 / 0))
    assert "broken" not in methods.names()


def test_packages_register_through_entry_points(monkeypatch):
    point = EntryPoint("any", "methods.plugin:add", methods.catalogue.ENTRY_POINTS)
    monkeypatch.setattr(methods.catalogue, "_REGISTERED", {})
    monkeypatch.setattr(methods.catalogue, "entry_points", lambda group: [point])
    methods.catalogue._load_plugins.cache_clear()
    try:
        assert "from_a_package" in methods.names()
    finally:
        methods.catalogue._load_plugins.cache_clear()
