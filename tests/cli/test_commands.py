"""Every command as a user calls it: what it prints, and what it leaves."""

import json
import os

import pytest
from cli.conftest import check_refusal, command
from cli.world import digest

from jaxforget import methods

COMMANDS = (
    "unlearn",
    "finetune",
    "evaluate",
    "quickstart",
    "sweep",
    "audit",
    "report",
    "methods",
    "doctor",
)


def only_object(text: str) -> dict:
    """The one JSON object that stdout must be, on one line."""
    assert text.endswith("\n") and text.count("\n") == 1, text
    return json.loads(text)


def test_help_names_every_command(cli):
    got = cli("--help")
    assert got.code == 0 and got.err == ""
    assert all(name in got.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_says_what_it_does(name, cli):
    got = cli(name, "--help")
    assert got.code == 0 and got.err == ""
    assert f"Usage: jaxforget {name} " in got.out and "--debug" in got.out


def test_no_command_shows_the_help(cli):
    got = cli()
    assert "Usage: jaxforget " in got.out + got.err and "unlearn" in got.out + got.err


def test_methods_lists_the_whole_catalogue(cli):
    got = cli("methods")
    assert got.code == 0 and all(name in got.out for name in methods.names())
    found = json.loads(cli("methods", "--json").out)
    assert [row["name"] for row in found] == methods.names()
    assert all(row["minimises"] and row["source"] and row["needs"] for row in found)


def test_doctor_says_what_there_is_and_what_is_missing(cli):
    got = cli("doctor")
    assert got.code == 0 and "jax" in got.out and "8 x cpu" in got.out
    facts = only_object(cli("doctor", "--json").out)
    assert facts["devices"] == "8 x cpu (cpu)" and isinstance(facts["warnings"], list)
    assert {"jaxforget", "jax", "numpy", "free disk here"} <= set(facts)
    assert f"{os.cpu_count()} cores" in facts["processor"]


def test_a_round_of_all_commands_prints_one_json_object_each(cli, world, tmp_path):
    runs = {name: tmp_path / name for name in ("finetune", "unlearn", "evaluate")}
    model = {"finetune": world.model, "unlearn": runs["finetune"], "evaluate": runs["unlearn"]}
    suite = f"evaluate={{forget: {world.root / 'forget.jsonl'}, generate: false}}"
    for name, run in runs.items():
        more = () if name == "finetune" else (suite,)
        config = world.config(name)
        got = cli(name, config, f"run_dir={run}", f"model={model[name]}", *more, "--json")
        assert got.code == 0 and got.err == "", got
        printed = only_object(got.out)
        results = json.loads((run / "results.json").read_text())
        assert printed == {"run_dir": str(run), "metrics": results["metrics"]}
        assert (run / "report.html").is_file()
        assert (run / "model" / "config.json").is_file() == (name != "evaluate")
    metrics = [json.loads((runs[name] / "results.json").read_text())["metrics"] for name in runs]
    assert metrics[0] == {} and 0 < metrics[1]["forget_prob"] < 1
    # the export is the model that was scored; programs for a mesh and for none round differently
    shown, scored = ({k: v for k, v in m.items() if v is not None} for m in metrics[:0:-1])
    assert shown == pytest.approx(scored, rel=1e-6, abs=1e-9)
    assert metrics[1].keys() == metrics[2].keys()
    out = tmp_path / "all.html"
    got = cli("report", *runs.values(), "--out", out, "--json")
    printed = only_object(got.out)
    assert printed["report"] == str(out) and [row["name"] for row in printed["rows"]] == list(runs)
    assert out.read_text().startswith("<!")


def test_quiet_is_silent_and_a_finished_run_is_left_as_it_is(cli, world, run_dir):
    again = ("unlearn", world.config("unlearn"), f"run_dir={run_dir}")
    stamps = {path: path.stat().st_mtime_ns for path in (run_dir / "model").iterdir()}
    before = digest(run_dir, ("model", "checkpoints", "results.json", "metrics.jsonl"))
    got = cli(*again, "--quiet")
    assert (got.code, got.out, got.err) == (0, "", "")
    assert only_object(cli(*again, "--json").out)["run_dir"] == str(run_dir)
    assert cli(*again).out == f"run directory: {run_dir}\n"
    assert digest(run_dir, ("model", "checkpoints", "results.json", "metrics.jsonl")) == before
    assert {path: path.stat().st_mtime_ns for path in (run_dir / "model").iterdir()} == stamps
    out = run_dir.parent / "r.html"
    got = cli("report", run_dir, "--out", out, "-q")
    assert (got.code, got.out, got.err) == (0, "", "") and out.is_file()


def test_a_process_of_its_own_is_quiet_too(world, tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_text((world.root / "forget.jsonl").read_text() * 2)  # rows that repeat: a warning
    run = ("unlearn", world.config("unlearn"), f"forget={file}", f"run_dir={tmp_path / 'run'}")
    got = command(*run, "train.steps=1", "--json")
    assert got.code == 0 and only_object(got.out)["metrics"] == {}
    assert "WARNING: " in got.err and "repeat an earlier" in got.err
    (tmp_path / "run" / "results.json").unlink()  # so that the data are read again
    got = command(*run, "train.steps=1", "-q")
    assert (got.code, got.out, got.err) == (0, "", "")
    assert (tmp_path / "run" / "results.json").exists()


def test_a_process_of_its_own_refuses_with_code_2_and_debug_shows_where(world, tmp_path):
    run = ("unlearn", world.config("unlearn"), f"run_dir={tmp_path}", "model=./none")
    check_refusal(command(*run), ("none: no such file or folder",))
    got = command(*run, "--debug")
    assert got.code != 0 and got.out == ""
    assert "Traceback" in got.err and "UserError: none: no such file or folder" in got.err


def test_a_hub_that_cannot_be_reached_is_one_message(world, tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    run = ("unlearn", world.config("unlearn"), f"run_dir={tmp_path / 'run'}", "model=nobody/none")
    got = command(*run, environment=nowhere)
    check_refusal(got, ("nobody/none", "not available from the Hugging Face hub"))
