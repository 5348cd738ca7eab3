"""What a run can be given besides its method: requests, pairings, recorded updates."""

import json
import shutil

import jax
import numpy as np
import pytest
from methods.small_runs import run

import jaxforget as jf
from jaxforget.data.pairing import PAIRINGS
from jaxforget.edits import read_updates
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import read_metrics
from jaxforget.engine.train import CompiledStep


def split_requests(world):
    """The eight rows of the forget file as three requests."""
    forget = str(world / "forget.jsonl")
    return [{"path": forget, "rows": rows} for rows in ("0:3", "3:6", "6:8")]


@pytest.mark.parametrize(
    "method",
    [
        "npo",
        pytest.param("salun", marks=pytest.mark.slow),
        pytest.param({"name": "ssd", "alpha": 1.1}, marks=pytest.mark.slow),
    ],
)
def test_requests_are_forgotten_one_after_the_other(world, tmp_path, method, monkeypatch):
    first, *others = split_requests(world)
    compiled, program = [], CompiledStep.program
    monkeypatch.setattr(
        CompiledStep, "program", lambda *given: compiled.append(1) or program(*given)
    )
    result, rows = run(world, tmp_path / "run", method, forget=first, requests=others)
    folders = [tmp_path / "run" / "requests" / name / "model" for name in "01"]
    chain = [jf.load(str(each)).params for each in (world / "model", *folders)] + [result.params]
    for before, after in zip(chain, chain[1:], strict=False):
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
    if method == "npo":
        assert len(compiled) == 1  # batches of all requests have the same shapes
        assert [row["step"] for row in rows] == list(range(1, 10))
        # each request is compared with the model it starts from
        for row in rows[::3]:
            np.testing.assert_allclose(row["forget"], 2 / 0.1 * np.log(2), rtol=1e-5)
    assert (tmp_path / "run" / "report.html").exists()


def test_one_request_of_several_steps_is_the_same_run_as_before(world, tmp_path):
    first, second, _ = split_requests(world)
    alone, _ = run(world, tmp_path / "alone", "npo", forget=first)
    both = tmp_path / "both"
    run(world, both, "npo", forget=first, requests=[second])
    after = jf.load(str(both / "requests" / "0" / "model")).params
    pairs = zip(jax.tree.leaves(alone.params), jax.tree.leaves(after), strict=True)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in pairs)


@pytest.mark.parametrize(
    "kept", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_requests_resume_where_they_were_killed(world, tmp_path, kept):
    first, *others = split_requests(world)
    train = {"steps": 3, "batch_size": 4, "log_every": 1, "seed": 0, "save_every": 1, "keep": 20}
    options = {"forget": first, "requests": others, "train": train, "lora": {"rank": 2}}
    whole, rows = run(world, tmp_path / "whole", "npo", **options)
    cut = tmp_path / "cut"
    run(world, cut, "npo", **options)
    for folder in (cut / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > kept:
            shutil.rmtree(folder)
    shutil.rmtree(cut / "model")
    for index in range(2):
        if kept <= 3 * (index + 1):
            shutil.rmtree(cut / "requests" / str(index))
    again, _ = run(world, cut, "npo", **options)
    pairs = zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True)
    assert all((a == b).all() for a, b in pairs)
    assert len(read_metrics(cut / "metrics.jsonl")) == 9


def test_a_method_that_trains_and_edits_takes_one_request(world, tmp_path):
    first, *others = split_requests(world)
    with pytest.raises(UserError, match="requests: task_arithmetic trains and then edits"):
        run(world, tmp_path / "run", "task_arithmetic", forget=first, requests=others)


@pytest.mark.parametrize("pairing", sorted(set(PAIRINGS) - {"cyclic"}))
def test_every_pairing_trains(world, tmp_path, pairing):
    train = {"steps": 4, "batch_size": 3, "log_every": 1, "seed": 0, "pairing": pairing}
    files = {}
    if pairing == "modular":
        rows = [json.loads(line) for line in (world / "retain.jsonl").read_text().splitlines()[:9]]
        people = json.loads((world / "forget.jsonl").read_text().splitlines()[0])["person"]
        for number, row in enumerate(rows):
            row["person"] = people if number < 5 else "general"
        (tmp_path / "retain.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files = {"retain": str(tmp_path / "retain.jsonl")}
        train["entity_column"] = "person"
    _, rows = run(world, tmp_path / "run", "npo", train=train, **files)
    assert len(rows) == 4 and all(np.isfinite(row["loss"]) for row in rows)
    if pairing == "alternate":
        assert [row["forget_tokens"] > 0 for row in rows] == [True, False, True, False]
        assert rows[1]["forget"] == 0 and rows[0]["retain"] == 0


def test_modular_says_what_it_lacks(world, tmp_path):
    train = {"steps": 1, "pairing": "modular"}
    with pytest.raises(UserError, match="entity_column: the pairing 'modular' needs"):
        run(world, tmp_path / "a", "npo", train=train)
    with pytest.raises(UserError, match="row 0 of .*forget.jsonl: 'who' must say whom"):
        run(world, tmp_path / "b", "npo", train={**train, "entity_column": "who"})
    with pytest.raises(UserError, match="does not train on the retain set"):
        run(world, tmp_path / "c", "ga", train={**train, "entity_column": "person"})
    with pytest.raises(UserError, match="only the pairing 'modular' reads it"):
        run(world, tmp_path / "d", "npo", train={"steps": 1, "entity_column": "person"})


@pytest.fixture(scope="module")
def taught(world, tmp_path_factory):
    """A run of four steps of which those with the first two rows to forget are recorded."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    config = {
        "model": str(world / "model"),
        "data": str(world / "train_full.jsonl"),
        "record_updates": {"path": str(world / "forget.jsonl"), "rows": "0:2"},
        "run_dir": str(folder),
        "max_length": 64,
        "train": {"epochs": 1, "batch_size": 16, "log_every": 1},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "clip_norm": None},
    }
    jf.finetune(config)
    return folder, config


def test_amnesiac_takes_back_what_the_recorded_steps_did(world, taught, tmp_path):
    folder, config = taught
    kept = list(read_updates(folder / "updates"))
    assert 1 <= len(kept) <= 2
    method = {"name": "amnesiac", "updates": str(folder / "updates")}
    forget = {"path": str(world / "forget.jsonl"), "rows": "0:2"}
    result, _ = run(world, tmp_path / "run", method, model=str(folder), forget=forget)
    want = jf.load(str(folder)).params
    for update in kept:
        want = jax.tree.map(lambda p, u: p - u, want, update.update)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(result.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    edit = json.loads((tmp_path / "run" / "results.json").read_text())["edit"]
    assert edit["steps"] == len(kept) and edit["examples"] == 2
    strangers = {"path": str(world / "forget.jsonl"), "rows": "2:4"}
    with pytest.raises(UserError, match="saw any of the 2"):
        run(world, tmp_path / "other", method, model=str(folder), forget=strangers)


def test_what_adapters_did_is_taken_back_from_the_merged_weights(world, taught, tmp_path):
    _, config = taught
    everything = {
        **config,
        "record_updates": config["data"],
        "run_dir": str(tmp_path / "taught"),
        "lora": {"rank": 2},
    }
    jf.finetune(everything)
    method = {"name": "amnesiac", "updates": str(tmp_path / "taught" / "updates")}
    start = str(tmp_path / "taught")
    given = {"model": start, "forget": config["data"], "retain": None}
    result, _ = run(world, tmp_path / "run", method, **given)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        jf.load(str(world / "model")).params,
        jf.load(start).params,
    )
    assert max(jax.tree.leaves(moved)) > 1e-3
    begun = jax.tree.leaves(jf.load(str(world / "model")).params)
    for a, b in zip(begun, jax.tree.leaves(result.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # all steps taken back


def test_a_resumed_run_records_what_a_whole_one_does(world, taught, tmp_path):
    folder, config = taught
    train = {**config["train"], "save_every": 1, "keep": 9}
    cut = tmp_path / "cut"
    jf.finetune({**config, "run_dir": str(cut), "train": train})
    for saved in (cut / "checkpoints").iterdir():
        if saved.name.isdigit() and int(saved.name) > 1:
            shutil.rmtree(saved)
    shutil.rmtree(cut / "model")
    shutil.rmtree(cut / "updates")
    jf.finetune({**config, "run_dir": str(cut), "train": train})
    again = {each.step: each for each in read_updates(cut / "updates")}
    for update in read_updates(folder / "updates"):
        if update.step >= 1:
            pairs = zip(
                jax.tree.leaves(update.update),
                jax.tree.leaves(again[update.step].update),
                strict=True,
            )
            assert all((a == b).all() for a, b in pairs)


def test_what_cannot_be_recorded_is_refused(world, taught, tmp_path):
    _, config = taught
    strangers = str(world / "world_facts.jsonl")
    only = {**config, "data": {"path": config["data"], "rows": "0:4"}}
    with pytest.raises(UserError, match="no row of this set is among the data"):
        jf.finetune({**only, "record_updates": strangers, "run_dir": str(tmp_path / "b")})
    with pytest.raises(UserError, match="no such folder of recorded updates"):
        run(world, tmp_path / "c", {"name": "amnesiac", "updates": str(tmp_path / "none")})
