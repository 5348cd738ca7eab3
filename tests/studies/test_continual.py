"""Streams from files to the matrix: what is measured, what is kept, and the same after a kill."""

import json
import shutil

import numpy as np
import pytest

from jaxforget.data.sources import DataSource, load_records
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.train import CompiledStep
from jaxforget.models.language_model import load
from jaxforget.studies import continual
from jaxforget.studies.streams import training

CLOCKS = ("time", "tokens_per_second", "step_ms")


def settings(world, run, **changes):
    """Three tasks of six steps from the tiny model, saved every four steps."""
    data = world / "data"
    tasks = [
        {"name": name, "data": str(data / f"{name}.jsonl"), "evaluate": str(data / f"{name}.jsonl")}
        for name in ("forget", "retain", "real_people")
        if (data / f"{name}.jsonl").exists()
    ]
    if len(tasks) < 3:
        # as long as those before, so that all tasks share a program
        rest = {"path": str(data / "retain.jsonl"), "rows": "0:8"}
        tasks.append({"name": "facts", "data": rest, "evaluate": rest})
    train = {"steps": 6, "batch_size": 4, "log_every": 1, "save_every": 4, "remat": "none"}
    return {
        "stream": tasks,
        "run_dir": str(run),
        "model": str(world / "base"),
        "max_length": 128,
        "memory": {"size": 12},
        "measure": {"limit": 6, "every": 2, "probe": 2, "windows": [2]},
        "optimizer": {"learning_rate": 1e-3},
        "mesh": {"data": 1},
        **changes,
        "train": {**train, **changes.get("train", {})},
    }


def weights(run):
    params = load(run / "model").params
    return [np.asarray(leaf) for leaf in __import__("jax").tree.leaves(params)]


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


@pytest.fixture(scope="module")
def naive(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("continual") / "naive"
    measure = {"limit": 6, "every": 2, "probe": 2, "windows": [2], "first": 2, "random": True}
    compiled, program = [], CompiledStep.program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledStep, "program", lambda *a: compiled.append(1) or program(*a))
        result = continual(settings(world, run, measure=measure))
    return run, result, len(compiled)


def test_tasks_of_about_the_same_lengths_share_a_program(naive):
    assert naive[2] == 1


def test_the_matrix_and_the_curves_are_what_scoring_says(world, naive):
    run, result, _ = naive
    results = json.loads((run / "results.json").read_text())
    nll = np.asarray(results["matrix"]["nll"])
    assert nll.shape == (4, 3) and results["ends"] == [6, 12, 18]
    assert result.metrics["mean_nll"] == pytest.approx(nll[-1].mean())
    back = np.mean([nll[i + 1, i] - nll[3, i] for i in range(2)])
    assert result.metrics["backward_transfer"] == pytest.approx(back)
    # the first and last rows are those of the model before and of the exported one
    for row, model in ((0, world / "base"), (-1, run)):
        lm = load(model)
        from jaxforget.data.template import Template
        from jaxforget.data.tokenise import tokenise
        from jaxforget.evals.teacher_forced import score_set

        for place, task in enumerate(settings(world, run)["stream"]):
            source = task["evaluate"]
            source = DataSource(**source) if isinstance(source, dict) else DataSource(source)
            records = load_records(source)[:6]
            found = tokenise(records, lm.tokenizer, Template(), max_length=128)
            table = score_set(lm.score, lm.params, found)
            assert nll[row, place] == pytest.approx(-table.logp.mean(), rel=1e-4)
    looks = results["looks"]
    assert [each["step"] for each in looks] == list(range(0, 19, 2))
    assert len(looks[0]["nll"]) == 3
    assert [row["task"] for row in results["retention"]] == results["matrix"]["tasks"][:2]
    random = np.asarray(json.loads((run / "tasks" / "random.json").read_text())["nll"])
    forward = np.mean([random[i] - nll[i, i] for i in (1, 2)])
    assert result.metrics["forward_transfer"] == pytest.approx(forward)
    assert random.min() > nll[0].max()
    curves = -np.asarray([look["nll"] for look in looks])
    area = np.mean([curves[3 * i : 3 * i + 3, i].mean() for i in range(3)])
    assert result.metrics["learning_curve_area"] == pytest.approx(area)
    assert (run / "report.html").read_text().count("<svg") >= 2


SLOW = pytest.mark.slow


OPTIONS = {
    "memory": {"size": 12, "share": 0.25, "rehearsal": {"law": "power"}},
    "views": 2,
    "packing": "blocks",
    "schedule": {"constant": 0.5, "warmup": 2, "cooldown": 3, "anneal": 4},
    "measure": {"limit": 6, "every": 2, "probe": 2, "windows": [2], "modules": ["change"]},
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"strategy": [{"name": "ewc", "weight": 5.0, "examples": 4}, "replay"]}, id="ewc+replay"
        ),
        pytest.param({"strategy": {"name": "fpf", "steps": 3}}, id="fpf", marks=SLOW),
        pytest.param({"strategy": "lwf"}, id="lwf", marks=SLOW),
        pytest.param({"strategy": {"name": "derpp", "kept": "top"}}, id="derpp", marks=SLOW),
        pytest.param(
            {"strategy": {"name": "k_fpf", "steps": 1, "every": 4}}, id="k_fpf", marks=SLOW
        ),
        pytest.param({"strategy": "si"}, id="si", marks=SLOW),
        pytest.param({"strategy": "ema"}, id="ema", marks=SLOW),
        pytest.param(OPTIONS, id="options", marks=SLOW),
    ],
)
def test_a_killed_stream_ends_with_the_same_bits(world, tmp_path, changes, monkeypatch):
    """Killed after a checkpoint, at a boundary before its files, and at the very end."""
    whole = tmp_path / "whole"
    continual(settings(world, whole, **changes))
    torn = tmp_path / "torn"

    class Killed(BaseException):
        pass

    save, ends = Checkpoints.save, training._Trainer._task_ends

    def killing_save(self, step, state, data):
        save(self, step, state, data)
        self.wait()
        if step == 4 and not (torn / "seen4").exists():
            (torn / "seen4").touch()
            raise Killed

    def killing_end(self, task, state):
        if task == 1 and not (torn / "seen12").exists():
            (torn / "seen12").touch()
            raise Killed
        return ends(self, task, state)

    monkeypatch.setattr(Checkpoints, "save", killing_save)
    monkeypatch.setattr(training._Trainer, "_task_ends", killing_end)
    for _ in range(2):
        with pytest.raises(Killed):
            continual(settings(world, torn, **changes))
    continual(settings(world, torn, **changes))
    for left, right in zip(weights(whole), weights(torn), strict=True):
        np.testing.assert_array_equal(left, right)
    assert rows(whole) == rows(torn)
    found = [json.loads((run / "results.json").read_text()) for run in (whole, torn)]
    for part in ("matrix", "looks", "modules", "retention"):
        assert found[0][part] == found[1][part]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"memory": {"size": 12, "share": 0.0}}, id="mix", marks=SLOW),
        pytest.param({"strategy": {"name": "derpp", "alpha": 0.0, "beta": 0.0}}, id="derpp"),
        pytest.param(
            {"strategy": {"name": "ewc", "weight": 0.0, "examples": 2}}, id="ewc", marks=SLOW
        ),
    ],
)
def test_nothing_to_replay_is_naive_training(world, naive, tmp_path, changes):
    continual(settings(world, tmp_path / "run", **changes))
    for left, right in zip(weights(naive[0]), weights(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(left, right)


def test_several_runs_are_compared_and_a_finished_one_is_not_done_again(world, tmp_path):
    runs = {"naive": {}, "joint": {"strategy": "joint"}, "mix": {"memory.share": 0.5}}
    config = settings(world, tmp_path / "study", runs=runs, reference="joint")
    found = continual(config).metrics
    assert found["joint"]["above_reference_nll"] == 0
    assert found["mix"]["mean_nll"] != found["naive"]["mean_nll"]
    before = (tmp_path / "study" / "naive" / "metrics.jsonl").stat().st_mtime_ns
    again = continual(config).metrics
    assert again == found
    assert (tmp_path / "study" / "naive" / "metrics.jsonl").stat().st_mtime_ns == before
    page = (tmp_path / "study" / "report.html").read_text()
    assert "joint" in page and "<script" not in page and 'src="http' not in page


def test_adapters_are_folded_between_tasks(world, tmp_path):
    config = {"strategy": "reg_lora", "lora": {"rank": 2}}
    run = tmp_path / "run"
    continual(settings(world, run, **config))
    results = json.loads((run / "results.json").read_text())
    assert len(results["matrix"]["nll"]) == 4
    assert (run / "tasks" / "1" / "start" / "config.json").exists()
    shutil.rmtree(run / "model")
    continual(settings(world, run, **config))
    assert json.loads((run / "results.json").read_text())["matrix"] == results["matrix"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scratch": {}}, "set one of model and scratch"),
        ({"strategy": "o_lora"}, "set lora.rank"),
        ({"strategy": "ewcc"}, "no strategy 'ewcc'.*ewc"),
        ({"strategy": "lwf", "memory": {"share": 0.5}}, 'set its teacher to "live"'),
        ({"strategy": {"name": "derpp", "kept": "hidden"}}, '"top" or "target"'),
        ({"train": {"select": "trade_off"}}, "train.select: continual has no use for it"),
        ({"runs": {"a/b": {}}}, "cannot be the name of a folder"),
        ({"runs": {"a": {"stream": []}}}, "runs.a.stream"),
        ({"runs": {"a": {}}, "reference": "b"}, "no run 'b'"),
    ],
)
def test_what_cannot_be_done_is_refused(world, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        continual(settings(world, tmp_path / "run", **changes))


def test_recovery_is_training_on_an_earlier_task_from_the_last_model(world, tmp_path):
    run = tmp_path / "run"
    probe = {"limit": 6, "recovery": {"steps": 2, "learning_rate": 1e-3}}
    # of another kind, so that training on it forgets the others
    facts = {"path": str(world / "data" / "world_facts.jsonl")}
    stream = settings(world, run)["stream"][:2]
    stream.append({"name": "facts", "data": facts, "evaluate": facts})
    result = continual(settings(world, run, measure=probe, stream=stream))
    results = json.loads((run / "results.json").read_text())
    nll = np.asarray(results["matrix"]["nll"])
    recovered = results["recovered_nll"]
    assert len(recovered) == 2 and all(a < b for a, b in zip(recovered, nll[-1], strict=False))
    own = [nll[i + 1, i] for i in range(2)]
    found = result.metrics["backward_transfer_after_recovery"]
    assert found == pytest.approx(np.mean(np.subtract(own, recovered)))
    assert found > result.metrics["backward_transfer"]
    # the rate matters: with none to speak of, nothing comes back
    still = tmp_path / "still"
    probe = {"limit": 6, "recovery": {"steps": 2, "learning_rate": 1e-12}}
    continual(settings(world, still, measure=probe, stream=stream))
    results = json.loads((still / "results.json").read_text())
    assert results["recovered_nll"] == pytest.approx(results["matrix"]["nll"][-1][:2], abs=1e-6)
