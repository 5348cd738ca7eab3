"""Suites chosen in a configuration, from the file to what a run writes."""

import json
import pathlib
import re

import pytest
import yaml

from jaxforget import config as configs
from jaxforget.engine.errors import UserError
from jaxforget.studies import evaluate
from jaxforget.studies.suites import READERS

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guide.md"


def shown(suite):
    """The guide's configuration of a suite, as text."""
    found = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    return next(text for text in found if f"suite: {suite}" in text)


def rows(world, name, count=4):
    lines = (world / "data" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:count]]


def write(file, some):
    file.write_text("".join(json.dumps(row) + "\n" for row in some))


def lines(run):
    return [json.loads(line) for line in (run / "examples.jsonl").read_text().splitlines()]


def test_ones_own_files_need_one_short_configuration(world, tmp_path, monkeypatch):
    text = shown("own")
    assert len(text.splitlines()) < 25
    monkeypatch.chdir(tmp_path)
    renamed = {
        "request": "question",
        "reply": "answer",
        "reply_reworded": "paraphrased_answer",
        "wrong_replies": "perturbed_answer",
    }
    for file, name in (("customers", "forget"), ("partners", "retain"), ("newcomers", "retain")):
        some = rows(world, name, 8)[4 if file == "newcomers" else 0 :][:4]
        write(
            tmp_path / f"{file}.jsonl",
            [{mine: row[theirs] for mine, theirs in renamed.items()} for row in some],
        )
    write(tmp_path / "facts.jsonl", [{"question": "Who?", "answer": "Ada."}] * 2)
    tree = yaml.safe_load(text)
    configs.build(configs.EvaluateConfig, tree)
    tree |= {"model": str(world / "base"), "max_length": 128}
    tree["evaluate"]["max_new_tokens"] = 4
    found = evaluate(tree).metrics
    for name in ("forget_prob", "forget_truth_ratio", "forget_rouge", "extraction_strength"):
        assert 0 <= found[name] <= 1
    assert 0 <= found["mia_min_k_auc"] <= 1 and found["facts_prob"] > 0
    run = tmp_path / tree["run_dir"]
    assert {line["set"] for line in lines(run)} == {"forget", "retain", "holdout", "facts"}
    assert (run / "report.html").exists()
    assert json.loads((run / "results.json").read_text())["metrics"] == found


def test_multiple_choice_needs_a_file_and_writes_a_line_a_question(world, tmp_path):
    asked = [
        {"question": row["question"], "choices": [row["answer"], *row["perturbed_answer"][:1]]}
        for row in rows(world, "forget")
    ]
    write(tmp_path / "q.jsonl", [{**row, "answer": "A"} for row in asked])
    found = evaluate(
        {
            "model": str(world / "base"),
            "run_dir": str(tmp_path / "run"),
            "max_length": 256,
            "evaluate": {
                "suite": "choice",
                "tasks": {"people": str(tmp_path / "q.jsonl")},
                "letters": True,
                "limit": 3,
            },
        }
    ).metrics
    seen = lines(tmp_path / "run")
    assert len(seen) == 3 and {"correct", "chosen", "prob", "correct_letter"} <= set(seen[0])
    assert found["people_accuracy"] == pytest.approx(sum(each["correct"] for each in seen) / 3)


def test_every_suite_of_the_configuration_can_be_read_and_judged():
    assert set(READERS) == {kind for name, kind in configs.SUITES.items() if name != "tofu"}
    for name, kind in configs.SUITES.items():
        assert kind.__dataclass_fields__["suite"].default == name


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ({"suite": "tofuu"}, "evaluate.suite: Did you mean 'tofu'"),
        ({"suite": "own", "forgett": "x"}, "evaluate.forgett: no such key. Did you mean 'forget'"),
        (
            {"suite": "choice", "tasks": {"a": {"path": "x", "kolumns": {}}}},
            "Did you mean 'columns",
        ),
        ({"forgett": "x"}, "evaluate.forgett: no such key"),
    ],
)
def test_faults_are_explained_with_the_suites_own_keys(suite, message):
    tree = {"model": "m", "run_dir": "r", "evaluate": suite}
    with pytest.raises(UserError, match=message):
        configs.build(configs.EvaluateConfig, tree)


def test_a_suites_settings_survive_writing_and_reading(tmp_path):
    for name in configs.SUITES:
        tree = yaml.safe_load(shown(name)) if name != "tofu" else {"evaluate": {"forget": "f"}}
        tree = {**tree, "model": "m", "run_dir": "r"}
        first = configs.build(configs.EvaluateConfig, tree)
        (tmp_path / "c.yaml").write_text(configs.to_yaml(first))
        assert configs.load(configs.EvaluateConfig, tmp_path / "c.yaml") == first


def test_an_oracle_without_an_evaluation_is_refused_before_anything_is_computed(world, tmp_path):
    (tmp_path / "results.json").write_text('{"metrics": {}}')
    tree = {
        "model": str(world / "base"),
        "run_dir": str(tmp_path / "run"),
        "evaluate": {
            "suite": "own",
            "forget": str(world / "data" / "forget.jsonl"),
            "oracle": str(tmp_path / "results.json"),
        },
    }
    with pytest.raises(UserError, match="holds no evaluation"):
        evaluate(tree)
