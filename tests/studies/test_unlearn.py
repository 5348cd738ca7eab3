"""What `unlearn` and `finetune` leave behind, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
from studies import tiny

from jaxforget.config import FinetuneConfig, build
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import lock
from jaxforget.engine.tree import flatten
from jaxforget.models.language_model import load
from jaxforget.studies import finetune, unlearn

SHORT = {"steps": 3, "save_every": 0}


def config(world, run, **changes):
    return tiny.config(world, run, **{**changes, "train": {**SHORT, **changes.get("train", {})}})


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """(result of a short run, its configuration)."""
    settings = config(world, tmp_path_factory.mktemp("done") / "run")
    return unlearn(settings), settings


def test_a_run_leaves_everything_its_directory_promises(done):
    result, settings = done
    run = result.run_dir
    for path in (run.config, run.metrics, run.results, run.report, run.log, run.model):
        assert path.exists(), path
    results = json.loads(run.results.read_text())
    assert results["method"] == "npo" and results["model"] == settings.model
    assert results["throughput"]["steps"] == 3
    assert results["throughput"]["tokens_per_second"] > 0
    assert results["seconds"] > 0 and len(results["config_sha256"]) == 64
    assert not list(run.path.rglob("*.part"))


def test_the_result_the_export_and_a_loaded_run_have_the_same_weights(done):
    result, _ = done
    loaded = flatten(load(result.run_dir.path).params)
    for path, leaf in flatten(result.params).items():
        np.testing.assert_array_equal(np.asarray(loaded[path]), np.asarray(leaf), err_msg=path)


def test_unlearning_moves_the_weights_and_leaves_the_starting_model_alone(world, done, tmp_path):
    start = flatten(load(world / "base").params)
    end = flatten(done[0].params)
    moved = [path for path, leaf in end.items() if not np.array_equal(leaf, start[path])]
    assert set(moved) == set(end)
    again = unlearn(config(world, tmp_path / "run"))
    for path, leaf in flatten(again.params).items():  # two runs of one configuration are one
        np.testing.assert_array_equal(leaf, end[path], err_msg=path)


def test_only_trainable_leaves_move(world, tmp_path):
    start = flatten(load(world / "base").params)
    result = unlearn(config(world, tmp_path / "run", train={"trainable": "layers/mlp/"}))
    for path, leaf in flatten(result.params).items():
        assert np.array_equal(leaf, start[path]) != path.startswith("layers/mlp/"), path


def test_adapters_are_merged_and_touch_only_what_they_target(world, tmp_path):
    start = flatten(load(world / "base").params)
    lora = {"rank": 2, "targets": "layers/attn/q"}
    result = unlearn(config(world, tmp_path / "run", lora=lora))
    end = flatten(result.params)
    assert end.keys() == start.keys()
    moved = [path for path, leaf in end.items() if not np.array_equal(leaf, start[path])]
    assert moved == ["layers/attn/q/w"]


def test_a_damaged_results_file_is_made_again(world, done, tmp_path, caplog):
    result, _ = done
    run = tmp_path / "run"
    shutil.copytree(result.run_dir.path, run)
    (run / "results.json").write_text('{"metrics": {')
    unlearn(config(world, run))
    assert "is damaged; making it again" in caplog.text
    assert json.loads((run / "results.json").read_text())["throughput"]["steps"] == 3


def test_a_changed_evaluation_is_made_without_training_again(world, done, tmp_path):
    result, _ = done
    run = tmp_path / "run"
    shutil.copytree(result.run_dir.path, run)
    suite = {"forget": str(world / "data" / "forget.jsonl"), "generate": False, "limit": 3}
    metrics = unlearn(config(world, run, evaluate=suite)).metrics
    assert 0 <= metrics["forget_prob"] <= 1
    assert json.loads((run / "results.json").read_text())["metrics"] == metrics
    assert tiny.rows(run) == tiny.rows(result.run_dir.path)


def test_several_sets_are_taught_together(world, tmp_path):
    data = world / "data"
    tree = {
        "model": str(world / "base"),
        "data": [str(data / f"{name}.jsonl") for name in ("forget", "retain")],
        "run_dir": str(tmp_path / "run"),
        "max_length": 128,
        "train": {"epochs": 1, "batch_size": 8},
        "mesh": {"data": 1},
    }
    result = finetune(build(FinetuneConfig, tree))
    count = sum(
        len((data / f"{name}.jsonl").read_text().splitlines()) for name in ("forget", "retain")
    )
    assert tiny.rows(result.run_dir.path)[-1]["step"] == -(-count // 8)


def test_a_run_in_use_is_refused(world, done, tmp_path):
    result, settings = done
    with lock(result.run_dir), pytest.raises(UserError, match="in use by another process"):
        unlearn(settings)
    assert unlearn(settings).params is not None


def test_a_row_that_is_to_be_forgotten_and_kept_is_refused(world, tmp_path):
    data = world / "data"
    with pytest.raises(UserError, match="retain"):
        unlearn(config(world, tmp_path / "run", retain=str(data / "train_full.jsonl")))


def test_a_missing_retain_set_is_refused_by_name(world, tmp_path):
    with pytest.raises(UserError, match="retain: method 'npo' needs this data set"):
        unlearn(config(world, tmp_path / "run", retain=None))


@pytest.mark.slow
def test_ascent_needs_no_retain_set(world, tmp_path):
    result = unlearn(config(world, tmp_path / "run", method="ga", retain=None))
    assert "retain" not in tiny.rows(result.run_dir.path)[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nop"}, "Did you mean 'npo'"),
        ({"train": {"trainable": "layers/nothing"}}, "matches no parameter"),
        ({"train": {"trainable": "mlp"}, "lora": {"rank": 2}}, "exclude each other"),
        ({"mesh": {"data": 16}}, "needs 16 devices"),
        ({"forget": "/nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model": "/nowhere"}, "no such file or folder"),
    ],
    ids=["method", "trainable", "lora", "mesh", "forget", "model"],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(world, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        unlearn(config(world, tmp_path / "run", **change))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "model").exists()


def test_a_refused_run_directory_can_be_used_for_the_mended_configuration(world, tmp_path):
    with pytest.raises(UserError):
        unlearn(config(world, tmp_path / "run", mesh={"data": 16}, method={"name": "npo"}))
    unlearn(config(world, tmp_path / "run", method={"name": "npo", "beta": 0.2}))


def test_a_run_that_diverges_stops_and_leaves_neither_checkpoint_nor_model(world, tmp_path):
    optimizer = {"learning_rate": 1e15, "clip_norm": None}
    with pytest.raises(UserError, match="stopped at step 3: the last 2 steps .* not finite"):
        unlearn(config(world, tmp_path / "run", optimizer=optimizer, train={"max_skipped": 2}))
    assert not (tmp_path / "run" / "model").exists()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    skipped = [row["skipped"] for row in tiny.rows(tmp_path / "run")]
    assert skipped == [0, 1, 2]
