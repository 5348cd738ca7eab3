"""Every method of the catalogue by name: defaults, errors, and a run through the whole study."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxforget import methods
from jaxforget.data import fictitious
from jaxforget.data.alternates import REFUSALS, mismatched, refusals
from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import read_metrics
from jaxforget.studies import unlearn

LAYERED = {"rmu", "adaptive_rmu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data and a random model of two layers, as a user has them on disk."""
    from transformers import AutoTokenizer

    from jaxforget.models.language_model import from_scratch

    folder = tmp_path_factory.mktemp("world")
    fictitious.write(folder, forget_people=1, retain_people=12, known_people=4, facts=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8, "intermediate_size": 48}
    from_scratch(config, tokenizer, 0).save_pretrained(folder / "model")
    return folder


def run(world, out, method, **more):
    config = {
        "model": str(world / "model"),
        "forget": str(world / "forget.jsonl"),
        "retain": {"path": str(world / "retain.jsonl"), "rows": "0:16"},
        "general": str(world / "world_facts.jsonl"),
        "run_dir": str(out),
        "method": method,
        "max_length": 64,
        "train": {"steps": 3, "batch_size": 4, "log_every": 1, "seed": 0},
        "optimizer": {"learning_rate": 1e-3},
        **more,
    }
    result = unlearn(config)
    return result, read_metrics(out / "metrics.jsonl")


@pytest.mark.parametrize("name", methods.names())
def test_a_method_runs_from_files_to_an_exported_model(world, tmp_path, name):
    method = {"name": name, **({"layer": 1} if name in LAYERED else {})}
    result, rows = run(world, tmp_path / "run", method)
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


@pytest.mark.parametrize("combiner", sorted(set(methods.COMBINERS) - {"weighted_sum"}))
def test_a_combiner_attaches_to_a_method(world, tmp_path, combiner):
    _, rows = run(world, tmp_path / "run", {"name": "npo", "combiner": combiner})
    assert len(rows) == 3 and all(np.isfinite(row["gradient_norm"]) for row in rows)
    assert any("cosine" in key for key in rows[0])


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
