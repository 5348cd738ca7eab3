"""Run directories that another run holds, or whose files are damaged, and runs that diverge."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml
from cli.conftest import check_refusal
from cli.world import KEPT, digest, rows, write_rows

from jaxforget.engine.run_dir import read_metrics

HOLDER = """
import fcntl, sys
handle = open(sys.argv[1], "w")
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def resumed(cli, world, run_dir):
    """Runs `unlearn` over the copy of a finished run, as its owner would: nothing is removed."""
    return lambda *args: cli("unlearn", world.config("unlearn"), f"run_dir={run_dir}", *args)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("train.seed=1", "train.seed: 0 -> 1"),
        ("optimizer.learning_rate=0.002", "optimizer.learning_rate: 0.001 -> 0.002"),
        ("method=npo", "method.name: 'ga' -> 'npo'"),
        ("lora.rank=2", "lora: None -> "),
    ],
)
def test_another_configuration_over_a_run_is_refused_by_the_key(override, names, resumed, run_dir):
    before = digest(run_dir, (*KEPT, "config.yaml"))
    check_refusal(resumed(override), (str(run_dir), "another configuration", names))
    assert digest(run_dir, (*KEPT, "config.yaml")) == before


def test_a_run_of_another_command_is_not_overwritten(cli, world, run_dir):
    before = digest(run_dir, KEPT)
    for command in ("evaluate", "finetune"):
        got = cli(command, world.config(command), f"run_dir={run_dir}")
        check_refusal(got, (str(run_dir), "another configuration"))
    assert digest(run_dir, KEPT) == before


def test_resume_never_refuses_an_existing_run(resumed, run_dir):
    before = digest(run_dir)
    check_refusal(resumed("resume=never"), (str(run_dir), "already holds a run", "resume=auto"))
    assert digest(run_dir) == before


def test_a_directory_held_by_a_living_process_is_refused(resumed, run_dir):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, run_dir / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        before = digest(run_dir)
        check_refusal(resumed(), (str(run_dir), "in use by another process"))
        assert digest(run_dir) == before
        holder.communicate("")
    assert resumed().code == 0  # a dead holder leaves nothing behind


@pytest.mark.parametrize("below", ["", "/run"], ids=["is_a_file", "is_below_a_file"])
def test_a_run_directory_that_is_a_file_is_refused(below, cli, world, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    got = cli("unlearn", world.config("unlearn"), f"run_dir={file}{below}")
    check_refusal(got, ("run_dir: cannot make", str(file)))
    assert file.read_text() == "precious"


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_run_directory_that_cannot_be_written_is_refused(cli, world):
    got = cli("unlearn", world.config("unlearn"), "run_dir=/proc/self")
    check_refusal(got, ("run_dir: cannot write in /proc/self",))


def halve(folder: pathlib.Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_truncated_checkpoint_falls_back_to_the_one_before_with_the_same_end(
    resumed, run_dir, caplog
):
    model = digest(run_dir, ["model"])
    halve(run_dir / "checkpoints" / "4")
    (run_dir / "results.json").unlink()
    got = resumed()
    assert got.code == 0 and "step 4/4" in got.err
    assert "checkpoint 4 cannot be read" in caplog.text
    assert digest(run_dir, ["model"]) == model


def test_a_run_of_damaged_checkpoints_only_is_refused(resumed, run_dir):
    for step in "24":
        halve(run_dir / "checkpoints" / step)
    (run_dir / "results.json").unlink()
    before = digest(run_dir, ["model", "checkpoints"])
    says = ("no checkpoint in", str(run_dir), "step 4: ", "step 2: ", "Move the folder away")
    check_refusal(resumed(), says)
    assert digest(run_dir, ["model", "checkpoints"]) == before


def test_a_checkpoint_of_other_data_is_refused(cli, world, run_dir, tmp_path):
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    data = write_rows(tmp_path / "forget.jsonl", rows("Eve", 4))
    identity = json.loads((run_dir / ".identity.json").read_text())
    identity["forget"]["path"] = config["forget"]["path"] = str(data)
    (run_dir / ".identity.json").write_text(json.dumps(identity))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "run_dir": str(run_dir)}))
    before = digest(run_dir, KEPT)
    check_refusal(cli("unlearn", str(tmp_path / "c.yaml")), ("another data, tokenizer or seed",))
    assert digest(run_dir, KEPT) == before


def test_a_checkpoint_of_a_model_of_another_shape_is_refused(resumed, run_dir):
    (run_dir / ".identity.json").unlink()
    before = digest(run_dir, KEPT)
    check_refusal(resumed("lora.rank=2"), ("no checkpoint in", "step 4: "))
    assert digest(run_dir, KEPT) == before


def test_a_damaged_record_of_the_configuration_is_refused(resumed, run_dir):
    (run_dir / ".identity.json").write_text('{"mod')
    check_refusal(resumed(), (".identity.json", "damaged"))


@pytest.mark.parametrize("content", ['{"metr', "[]", "{}"], ids=["torn", "a_list", "empty"])
def test_damaged_results_are_made_again_without_training(content, resumed, run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    (run_dir / "results.json").write_text(content)
    got = resumed()
    assert got.code == 0 and "step " not in got.err
    again = json.loads((run_dir / "results.json").read_text())
    assert again["config_sha256"] == results["config_sha256"]


def test_a_damaged_export_of_a_finished_run_is_made_again(resumed, run_dir):
    before = digest(run_dir, ["model"])
    halve(run_dir / "model")
    got = resumed()
    assert got.code == 0 and "step " not in got.err
    assert digest(run_dir, ["model"]) == before


def test_a_folder_with_strange_files_is_no_place_for_a_model(resumed, run_dir):
    shutil.rmtree(run_dir / "checkpoints" / "4")
    (run_dir / "results.json").unlink()
    (run_dir / "model" / "thesis.tex").write_text("precious")
    before = digest(run_dir, ["model"])
    check_refusal(resumed(), ("thesis.tex", "would be lost"), progress=("step ",))
    assert digest(run_dir, ["model"]) == before


def test_a_run_that_diverges_stops_with_advice_and_exports_nothing(cli, world, tmp_path):
    overrides = (
        "optimizer={name: sgd, learning_rate: 1e+36, clip_norm: null, schedule: constant}",
        "train={steps: 40, batch_size: 2, log_every: 1, max_skipped: 3}",
    )
    got = cli("unlearn", world.config("unlearn"), f"run_dir={tmp_path / 'r'}", *overrides)
    says = ("not finite", "3 steps", "optimizer.learning_rate")
    check_refusal(got, says, progress=("step ",))
    assert (
        not (tmp_path / "r" / "model").exists() and not (tmp_path / "r" / "results.json").exists()
    )


REPORTS = {
    "nothing_there": (lambda at: None, ("no run directory",)),
    "empty": (lambda at: at.mkdir(), ("results.json is missing", "not finished")),
    "a_file": (lambda at: at.write_text(""), ("no run directory",)),
}


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_of_what_is_no_run_is_refused(kind, cli, tmp_path):
    make, says = REPORTS[kind]
    make(tmp_path / "run")
    out = tmp_path / "report.html"
    out.write_text("earlier")
    check_refusal(cli("report", tmp_path / "run", "--out", out), (str(tmp_path / "run"), *says))
    assert out.read_text() == "earlier"


@pytest.mark.parametrize("content", ['{"metr', "[]", '{"metrics": 3}', '{"metrics": {}}x'])
def test_a_report_of_damaged_results_is_refused(content, cli, run_dir, tmp_path):
    (run_dir / "results.json").write_text(content)
    got = cli("report", run_dir, "--out", tmp_path / "report.html")
    check_refusal(got, ("results.json is damaged",))


def test_a_report_that_cannot_be_written_is_refused_by_its_place(cli, run_dir, tmp_path):
    check_refusal(cli("report", run_dir, "--out", tmp_path), (str(tmp_path), "directory"))


@pytest.mark.parametrize(
    "axes", ["{data: 1, tensor: 8}", pytest.param("{data: 3}", marks=pytest.mark.slow)]
)
def test_a_mesh_that_divides_neither_heads_nor_rows_changes_no_number(
    axes, cli, world, run_dir, tmp_path
):
    """8 devices for 4 heads: axes are dropped, the log says so; 3 for 2 rows: rows are added."""
    got = cli("unlearn", world.config("unlearn"), f"run_dir={tmp_path / 'other'}", f"mesh={axes}")
    assert got.code == 0, got.err
    runs = (run_dir, tmp_path / "other")
    want, losses = ([row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in runs)
    assert losses == pytest.approx(want, rel=1e-5)
    if "tensor" in axes:
        assert "sizes do not divide: " in (tmp_path / "other" / "log.txt").read_text()
