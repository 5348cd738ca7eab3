"""`jaxforget audit` from a run directory to its report."""

import dataclasses
import json
import re
import shutil

import pytest
from studies import tiny

import jaxforget as jf
from jaxforget.engine.errors import UserError
from jaxforget.evals.attacks import ATTACKS

QUICK = [
    "ask",
    {"name": "relearn", "steps": 2, "learning_rates": [1e-3]},
    {"name": "quantise", "bits": 8},
]


@pytest.fixture(scope="module")
def forgotten(world, tmp_path_factory):
    """A finished unlearning run of a few steps."""
    run = tmp_path_factory.mktemp("forgotten") / "run"
    jf.unlearn(tiny.config(world, run, train={"steps": 3, "save_every": 0}))
    return run


def audit(run, **changes):
    return jf.audit({"run": str(run), "attacks": QUICK, "limit": 4, "mesh": {"data": 1}, **changes})


def results_of(result):
    return json.loads(result.run_dir.results.read_text())


def test_an_audit_compares_with_the_model_before_and_an_oracle(world, forgotten, tmp_path):
    result = audit(forgotten, run_dir=str(tmp_path / "audit"), oracle=str(world / "base"))
    found = results_of(result)
    assert list(found["metrics"]) == [
        "ask",
        "relearn(steps=2, learning_rates=(0.001,))",
        "quantise(bits=8)",
    ]
    assert all(
        each.keys() == {"audited", "start", "oracle"}
        for each in (a["known"] for a in found["attacks"])
    )
    # the oracle of this test is the model before: no attack can tell them apart
    assert set(found["metrics"].values()) == {None}
    assert "nothing can be concluded" in found["verdict"]
    page = result.run_dir.report.read_text()
    links = re.findall(r'(?:src|href)="([^"#]*)"', page)
    assert "<script" not in page and all(link.startswith("data:") for link in links)
    assert found["verdict"].split(";")[0] in page and "<svg" in page
    assert found["weights"]["all"]["distance"] > 0


def test_the_page_shows_the_landscape_of_the_loss(world, forgotten, tmp_path):
    found = audit(
        forgotten,
        run_dir=str(tmp_path / "audit"),
        holdout=str(world / "data" / "retain.jsonl"),
        attacks=["membership", {"name": "remind", "variants": 4, "folds": 2, "by": "row"}],
    )
    page = found.run_dir.report.read_text()
    for words in ("landscape", "audited, forget", "start, holdout", "false positive rate"):
        assert words in page
    (one, two) = results_of(found)["attacks"]
    assert "auc_low" in one["scores"]["audited"] and "loss_auc" in two["scores"]["start"]
    assert page.count("<svg") >= 3  # two curves of the error rates, one landscape


def test_findings_are_kept_and_attacks_can_be_added(forgotten, tmp_path, monkeypatch):
    place = {"run_dir": str(tmp_path / "audit")}
    first = audit(forgotten, **place, attacks=["ask"])
    made = []

    def counted(name):
        attack = ATTACKS[name]

        def run(*arguments):
            made.append(name)
            return attack.run(*arguments)

        return dataclasses.replace(attack, run=run)

    monkeypatch.setattr(
        "jaxforget.evals.attacks.catalogue.ATTACKS", {name: counted(name) for name in ATTACKS}
    )
    second = audit(forgotten, **place)
    assert sorted(made) == ["quantise"] * 2 + ["relearn"] * 2  # asked before, not again
    assert second.metrics["ask"] == first.metrics["ask"]
    made.clear()
    audit(forgotten, **place, attacks=["ask", {"name": "quantise", "bits": 8}])
    assert not made
    (tmp_path / "audit" / "findings" / "start" / "ask.json").write_text("{")
    audit(forgotten, **place, attacks=["ask"])
    assert made == ["ask"]
    # another model is audited beside the same one: what was found of that one holds
    made.clear()
    copy = tmp_path / "copy"
    shutil.copytree(forgotten, copy)
    shutil.copytree(
        tmp_path / "audit" / "findings" / "start", copy / "audit" / "findings" / "start"
    )
    audit(copy, attacks=["ask"])
    assert made == ["ask"]


def test_a_model_written_anew_is_attacked_anew(forgotten, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(forgotten, copy)
    before = results_of(audit(copy, attacks=["ask"]))["attacks"][0]["known"]
    other = jf.load(str(copy))
    other.save_pretrained(
        copy / "model", params={**other.params, "embed": {"w": other.params["embed"]["w"] * 0.5}}
    )
    after = results_of(audit(copy, attacks=["ask"]))["attacks"][0]["known"]
    assert before["start"] == after["start"] and before["audited"] != after["audited"]


def test_any_model_can_be_audited(world, forgotten, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxforget.evals.attacks.compare.LEAST_GAP", 0.0)  # it knows little
    given = {
        "start": str(world / "base"),
        "forget": str(world / "data" / "forget.jsonl"),
        "run_dir": str(tmp_path / "audit"),
    }
    found = results_of(audit(forgotten / "model", **given, attacks=["ask"]))
    assert "there is no oracle" in found["verdict"]
    assert found["metrics"]["ask"] is not None


def test_attacks_without_their_data_are_told(forgotten, tmp_path):
    needs = {"name": "relearn", "text": "unrelated", "steps": 1}
    with pytest.raises(UserError, match=r"relearn\(text=unrelated, steps=1\) \(needs unrelated\)"):
        audit(forgotten, run_dir=str(tmp_path / "a"), attacks=[needs])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"run": "nowhere"}, "start: nowhere is no run directory"),
        ({"attacks": ["relern"]}, "no attack 'relern'"),
        ({"limit": 0}, "limit: .*greater than or equal to 1"),
        ({"oracle": "nowhere"}, "nowhere"),
        ({"forget": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_a_wrong_configuration_is_refused(forgotten, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        audit(**{"run": forgotten, "run_dir": str(tmp_path / "audit"), **changes})


@pytest.mark.slow
def test_a_run_judged_by_blur_is_relearnt_from_its_texts(world, tmp_path):
    data, run = world / "data", tmp_path / "run"
    suite = {
        "suite": "blur",
        "forget": {"path": str(data / "forget.jsonl"), "rows": "0:2"},
        "retain": {"path": str(data / "retain.jsonl"), "rows": "0:2"},
        "relearn": {"nearly": {"path": str(data / "retain.jsonl"), "rows": "2:6"}},
        "max_new_tokens": 2,
    }
    jf.unlearn(tiny.config(world, run, train={"steps": 1, "save_every": 0}, evaluate=suite))
    quick = {"name": "relearn", "steps": 1, "learning_rates": [1e-3]}
    found = audit(run, attacks=[{**quick, "text": "nearly"}, {**quick, "text": "hardly"}][:1])
    assert list(found.metrics) == ["relearn(text=nearly, steps=1, learning_rates=(0.001,))"]
    assert "examples of the nearly set" in results_of(found)["attacks"][0]["budget"]
    with pytest.raises(UserError, match="needs hardly"):
        audit(run, attacks=[{**quick, "text": "hardly"}], run_dir=str(tmp_path / "other"))
    further = {"hardly": {"path": str(data / "world_facts.jsonl"), "rows": "0:4"}}
    where = {"further": further, "run_dir": str(tmp_path / "more")}
    more = audit(run, attacks=[{**quick, "text": "hardly"}], **where)
    assert len(more.metrics) == 1
    with pytest.raises(UserError, match="further: 'retain' must be one word"):
        audit(run, further={"retain": further["hardly"]}, run_dir=str(tmp_path / "another"))
