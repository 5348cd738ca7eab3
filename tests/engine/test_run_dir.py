import json

import pytest

from jaxforget.engine import files
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import (
    MetricsStream,
    lock,
    open_run,
    read_metrics,
    write_config,
)


def test_resume_never_refuses_a_directory_that_holds_a_run(tmp_path):
    run = open_run(tmp_path / "r", resume="never")
    write_config(run, "a: 1\n", "{}")
    with pytest.raises(UserError, match="already holds a run"):
        open_run(tmp_path / "r", resume="never")
    assert open_run(tmp_path / "r", resume="auto") == run


def test_a_directory_in_use_is_refused(tmp_path):
    run = open_run(tmp_path / "r", resume="auto")
    with lock(run), pytest.raises(UserError, match="in use by another process"):
        lock(run)
    lock(run).close()


def test_another_configuration_is_refused_by_the_names_of_its_keys(tmp_path):
    run = open_run(tmp_path / "r", resume="auto")
    write_config(run, "x", json.dumps({"train": {"seed": 0}, "model": "m"}))
    # nothing was computed yet: a corrected configuration is welcome
    write_config(run, "x", json.dumps({"train": {"seed": 1}, "model": "m"}))
    (run.checkpoints / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    write_config(run, "x", json.dumps({"train": {"seed": 1}, "model": "m"}))
    (run.checkpoints / "5").mkdir()
    with pytest.raises(UserError, match="train.seed: 1 -> 2"):
        write_config(run, "x", json.dumps({"train": {"seed": 2}, "model": "m"}))


def test_metrics_after_the_resumed_step_and_torn_lines_are_dropped(tmp_path):
    run = open_run(tmp_path / "r", resume="auto")
    stream = MetricsStream(run)
    for step in (1, 2, 3):
        stream.write(step, {"loss": 0.5 * step, "bad": float("nan")})
    stream.close()
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    stream = MetricsStream(run, resume_step=2)
    stream.write(3, {"loss": 9.0})
    stream.close()
    rows = read_metrics(run.metrics)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert rows[0]["bad"] == "nan"


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    files.write_json(file, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_options_that_an_older_version_did_not_know_count_as_their_defaults(tmp_path):
    run = open_run(tmp_path / "run", resume="auto")
    old = {"train": {"seed": 0}, "model": "m"}
    write_config(run, "x", json.dumps(old))
    run.results.write_text("{}")
    defaults = {"train": {"pairing": "cyclic", "log_every": 5}, "requests": [], "resume": "auto"}
    same = {"train": {"seed": 0, "pairing": "cyclic"}, "model": "m", "requests": []}
    write_config(run, "x", json.dumps(same), defaults)
    other = {**same, "train": {"seed": 0, "pairing": "modular"}}
    with pytest.raises(UserError, match="train.pairing: 'cyclic' -> 'modular'"):
        write_config(run, "x", json.dumps(other), defaults)
