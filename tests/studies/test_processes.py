"""Two processes of four devices each are one run: one set of files, the losses of one process."""

import json
import shutil

import numpy as np
import pytest
from studies import processes, tiny

from jaxforget.studies import unlearn

SUITE = ("forget", "retain")
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def tree(world, run, **changes):
    """A run with an evaluation of both kinds, likelihoods and generated answers."""
    sets = {name: str(world / "data" / f"{name}.jsonl") for name in SUITE}
    suite = {**sets, "limit": 4, "max_new_tokens": 8, "batch_size": 8}
    return tiny.settings(world, run, **{"mesh": MESH, "evaluate": suite, **changes})


def succeed(given, file):
    ended = processes.run("unlearn", given, file)
    assert [each.code for each in ended] == [0, 0], [each.errors for each in ended]
    return ended


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The same run by one process on one device."""
    from jaxforget.config import UnlearnConfig, build

    place = tmp_path_factory.mktemp("alone") / "run"
    unlearn(build(UnlearnConfig, tree(world, place, mesh={"data": 1})))
    return place


@pytest.fixture(scope="module")
def together(world, tmp_path_factory):
    """(run directory, how the processes ended)."""
    folder = tmp_path_factory.mktemp("together")
    return folder / "run", succeed(tree(world, folder / "run"), folder / "config.yaml")


def test_two_processes_have_the_losses_of_one(alone, together):
    tiny.same_curve(tiny.rows(together[0]), tiny.rows(alone))


def test_two_processes_export_the_model_of_one(alone, together):
    mine, theirs = tiny.exported(together[0]), tiny.exported(alone)
    assert mine.keys() == theirs.keys()
    for path, leaf in theirs.items():
        assert np.linalg.norm(mine[path] - leaf) <= 1e-5 * np.linalg.norm(leaf), path


def test_both_processes_report_the_metrics_that_one_has(alone, together):
    told = [json.loads(each.output.splitlines()[-1])["metrics"] for each in together[1]]
    assert told[0] == told[1]
    results = [json.loads((run / "results.json").read_text()) for run in (together[0], alone)]
    assert results[0]["metrics"] == told[0]
    for name, value in results[1]["metrics"].items():
        near = None if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)
        assert told[0][name] == near, name
    assert results[0]["generations"] == results[1]["generations"]
    assert results[0]["devices"]["processes"] == 2


def test_only_the_first_process_writes_the_files_of_a_run(alone, together):
    left = [{path.name for path in run.iterdir()} for run in (together[0], alone)]
    assert left[0] == left[1]
    logged = (together[0] / "log.txt").read_text()
    assert logged.count("scoring the forget set with the starting model") == 1
    state = together[0] / "checkpoints" / "20" / "state"
    assert {path.name for path in state.glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }


def test_a_checkpoint_of_two_processes_goes_on_alike_in_one(world, alone, together, tmp_path):
    copy = tiny.only_checkpoint(together[0], tmp_path / "run", 10)
    unlearn(tiny.config(world, copy))
    assert "resuming after step 10 of 20" in (copy / "log.txt").read_text()
    tiny.same_curve(tiny.rows(copy), tiny.rows(alone))


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_alike_in_two(world, alone, tmp_path):
    copy = tiny.only_checkpoint(alone, tmp_path / "run", 10)
    succeed(tree(world, copy), tmp_path / "config.yaml")
    assert "resuming after step 10 of 20" in (copy / "log.txt").read_text()
    tiny.same_curve(tiny.rows(copy), tiny.rows(alone))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 1, "fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_two_processes_have_the_losses_of_one_under_kl(world, tmp_path, mesh):
    unlearn(tiny.config(world, tmp_path / "alone", method="kl_min"))
    given = tiny.settings(world, tmp_path / "two", method="kl_min", mesh=mesh)
    succeed(given, tmp_path / "config.yaml")
    tiny.same_curve(tiny.rows(tmp_path / "two"), tiny.rows(tmp_path / "alone"))


def test_a_refusal_of_the_first_process_ends_both(world, together, tmp_path):
    given = tree(world, together[0], resume="never")
    first, second = processes.run("unlearn", given, tmp_path / "config.yaml")
    assert (first.code, second.code) == (2, 2)
    assert "already holds a run" in first.errors
    assert "the first process failed" in second.errors


@pytest.mark.slow
def test_two_processes_go_back_together_from_a_damaged_checkpoint(world, alone, together, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(together[0], copy)
    (copy / "results.json").unlink()
    for file in (copy / "checkpoints" / "20" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    succeed(tree(world, copy), tmp_path / "config.yaml")
    assert "resuming after step 10 of 20" in (copy / "log.txt").read_text()
    tiny.same_curve(tiny.rows(copy), tiny.rows(alone))


@pytest.mark.slow
def test_two_processes_find_a_finished_run_finished(world, together, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(together[0], copy)
    given = tree(world, copy)
    (copy / "report.html").unlink()
    before = (copy / "results.json").stat().st_mtime_ns
    ended = succeed(given, tmp_path / "config.yaml")
    assert (copy / "results.json").stat().st_mtime_ns == before
    assert (copy / "report.html").exists()
    told = [json.loads(each.output.splitlines()[-1])["metrics"] for each in ended]
    assert told[0] == told[1] == json.loads((copy / "results.json").read_text())["metrics"]


@pytest.mark.slow
def test_two_processes_evaluate_as_one(world, alone, tmp_path):
    suite = tree(world, alone)["evaluate"]
    given = {"model": str(alone), "run_dir": str(tmp_path / "run"), "evaluate": suite}
    ended = processes.run("evaluate", {**given, "max_length": 128}, tmp_path / "config.yaml")
    assert [each.code for each in ended] == [0, 0], [each.errors for each in ended]
    mine, theirs = (
        json.loads((run / "results.json").read_text())["metrics"]
        for run in (tmp_path / "run", alone)
    )
    assert mine == pytest.approx(theirs)
