"""A run that was stopped and started again ends with the bits of one that never was."""

import importlib
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from marks import slow_but
from studies import tiny

from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies import unlearn
from jaxforget.studies.common import Events, Stopwatch

KINDS = {
    "plain": {},
    "accumulated": {
        "train": {"accumulate": 3},
        "method": "kl_min",
        "optimizer": {"moments": "int8"},
    },
    "lora": {"lora": {"rank": 4}},
}
SHORT = {"steps": 12, "save_every": 5, "log_every": 5}


class Stop(Exception):
    """Stands for whatever ends a process."""


def make(world, run, kind="plain", **train):
    changes = KINDS[kind]
    return tiny.config(
        world, run, **{**changes, "train": {**SHORT, **changes.get("train", {}), **train}}
    )


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """Run directories by kind, made when first asked for."""
    made = {}

    def run(kind="plain"):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "run"
            unlearn(make(world, made[kind], kind))
        return made[kind]

    return run


def stopped_at(step):
    """Events that end a run when it reports `step`."""

    def progress(progress):
        if progress.step == step:
            raise Stop

    return Events(progress=progress)


def check_same(mine, theirs):
    assert tiny.rows(mine) == tiny.rows(theirs)
    ours, others = tiny.exported(mine), tiny.exported(theirs)
    assert ours.keys() == others.keys()
    for path, leaf in others.items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
    assert (mine / "results.json").exists() and (mine / "report.html").exists()


def saved(run):
    return sorted(int(each.name) for each in (run / "checkpoints").iterdir())


STOPS = {("plain", 1), ("lora", 10)}


@pytest.mark.parametrize(
    ("kind", "step"),
    slow_but(STOPS, itertools.product(KINDS, (1, 5, 10))),
)
def test_a_stopped_run_ends_with_the_same_bits(world, undisturbed, tmp_path, kind, step):
    settings = make(world, tmp_path / "run", kind)
    with pytest.raises(Stop):
        unlearn(settings, stopped_at(step))
    assert saved(tmp_path / "run") == [before for before in (5, 10) if before < step]
    unlearn(settings)
    check_same(tmp_path / "run", undisturbed(kind))


def test_a_run_stopped_many_times_ends_with_the_same_bits(world, undisturbed, tmp_path):
    settings = make(world, tmp_path / "run")
    for step in (5, 10, 12):
        with pytest.raises(Stop):
            unlearn(settings, stopped_at(step))
    unlearn(settings)
    check_same(tmp_path / "run", undisturbed())


def test_other_intervals_of_logging_and_saving_change_no_bit(world, undisturbed, tmp_path):
    unlearn(make(world, tmp_path / "run", log_every=1, save_every=0))
    assert saved(tmp_path / "run") == [12]
    mine, theirs = tiny.exported(tmp_path / "run"), tiny.exported(undisturbed())
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(mine[path], leaf, err_msg=path)
    rows = {row["step"]: row for row in tiny.rows(tmp_path / "run")}
    assert [rows[row["step"]] for row in tiny.rows(undisturbed())] == tiny.rows(undisturbed())


def test_the_newest_checkpoints_are_kept(world, undisturbed, tmp_path):
    assert saved(undisturbed()) == [10, 12]
    unlearn(make(world, tmp_path / "run", save_every=2, keep=3))
    assert saved(tmp_path / "run") == [8, 10, 12]


def test_never_refuses_a_directory_with_a_run_and_leaves_it_alone(world, undisturbed, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in undisturbed().rglob("*")}
    with pytest.raises(UserError, match="already holds a run"):
        unlearn(tiny.config(world, undisturbed(), resume="never", train=SHORT))
    assert {path: path.stat().st_mtime_ns for path in undisturbed().rglob("*")} == before
    unlearn(tiny.config(world, tmp_path / "run", resume="never", train=SHORT))
    assert (tmp_path / "run" / "results.json").exists()


def test_a_finished_run_is_not_made_again(world, undisturbed, monkeypatch):
    undisturbed()
    monkeypatch.setattr(Checkpoints, "save", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(LanguageModel, "save_pretrained", lambda *_, **__: pytest.fail("exported"))
    result = unlearn(make(world, undisturbed()))
    assert result.params is not None


@pytest.mark.parametrize("name", ["save_pretrained", "write_results", "write_page"])
def test_a_stop_behind_the_last_checkpoint_is_healed(
    world, undisturbed, tmp_path, monkeypatch, name
):
    def stop(*_, **__):
        raise Stop

    settings = make(world, tmp_path / "run")
    with monkeypatch.context() as patch:
        # the package's own name `unlearn` is the function
        module = importlib.import_module("jaxforget.studies.unlearn")
        patch.setattr(LanguageModel if name == "save_pretrained" else module, name, stop)
        with pytest.raises(Stop):
            unlearn(settings)
    unlearn(settings)
    check_same(tmp_path / "run", undisturbed())


def test_a_save_in_flight_at_a_kill_leaves_the_checkpoint_before(world, undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed(), run)
    (run / "results.json").unlink()
    shutil.rmtree(run / "model")
    newest = run / "checkpoints" / "12"
    (newest / "_CHECKPOINT_METADATA").unlink()
    newest.rename(newest.with_name("12.orbax-checkpoint-tmp"))
    unlearn(make(world, run))
    assert "resuming after step 10 of 12" in (run / "log.txt").read_text()
    assert saved(run) == [10, 12]
    check_same(run, undisturbed())


def test_seconds_are_those_of_every_process_that_led_to_the_result(world, tmp_path, monkeypatch):
    settings = make(world, tmp_path / "run")
    monkeypatch.setattr(Stopwatch, "seconds", lambda _: 100.0)
    with pytest.raises(Stop):
        unlearn(settings, stopped_at(12))
    for clock in (7.0, 3.0):  # the third process finds nothing left to train
        monkeypatch.setattr(Stopwatch, "seconds", lambda _, clock=clock: clock)
        unlearn(settings)
        results = tmp_path / "run" / "results.json"
        assert json.loads(results.read_text())["seconds"] == 107.0
        results.unlink()


@pytest.mark.parametrize(
    ("change", "key"),
    [({"optimizer": {"learning_rate": 2e-3}}, "learning_rate"), ({"method": "ga"}, "method")],
)
def test_another_configuration_is_refused(world, undisturbed, change, key):
    with pytest.raises(UserError, match=key):
        unlearn(tiny.config(world, undisturbed(), **{**change, "train": SHORT}))


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits():
    """Real processes, real SIGKILL: what `benchmarks/kill_and_resume.py` does on demand."""
    script = pathlib.Path(__file__).parents[2] / "benchmarks" / "kill_and_resume.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--kills", "3", "--steps", "20"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert (told["identical"], told["of"]) == (3, 3)
