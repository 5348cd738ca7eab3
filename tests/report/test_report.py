import json
import re

import pytest

from jaxforget.engine.errors import UserError
from jaxforget.report import RunSummary, load_run, terminal_table, write_report
from jaxforget.report.audit_plots import curves_of
from jaxforget.report.page import side_by_side


def run(name, **metrics):
    defaults = {"forget_prob": 0.5, "retain_prob": 0.9, "model_utility": 0.6}
    return RunSummary(
        name=name,
        metrics={**defaults, **metrics},
        seconds=1.25,
        curves=[{"step": step, "forget": 1.0 / step, "retain": 0.1} for step in (1, 2, 3)],
        generations=[
            {
                "set": "forget",
                "row": 0,
                "prompt": "<script>x</script>?",
                "truth": "A",
                "answer": name,
            }
        ],
        config="model: m\n",
        environment={"versions": {"jax": "1"}},
    )


def test_the_page_needs_no_network_and_escapes_what_models_say(tmp_path):
    out = write_report([run("finetuned"), run("oracle", forget_prob=0.1)], tmp_path / "r.html")
    html = out.read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    links = re.findall(r'(?:src|href)="([^"#]*)"', html)
    assert all(link.startswith("data:") for link in links), links
    assert "@import" not in html and "url(http" not in html
    assert html.count("<svg") == 3


def test_the_same_runs_give_the_same_bytes(tmp_path):
    runs = [run("a"), run("b", forget_prob=0.2)]
    first = write_report(runs, tmp_path / "1.html").read_bytes()
    assert first == write_report(runs, tmp_path / "2.html").read_bytes()


def test_missing_metrics_are_shown_as_missing(tmp_path):
    bare = RunSummary(name="bare", metrics={"forget_prob": None})
    html = write_report([bare], tmp_path / "r.html").read_text()
    assert "–" in html and "Trade-off" not in html


def test_answers_of_all_runs_stand_under_one_question():
    (entry,) = side_by_side([run("a"), run("b")])
    assert entry["answers"] == {"a": "a", "b": "b"} and entry["truth"] == "A"


def test_load_run_reads_what_a_run_wrote(tmp_path):
    results = {"metrics": {"forget_prob": 0.25}, "seconds": 2.0, "versions": {"jax": "1"}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    loaded = load_run(tmp_path, "x")
    assert loaded.row()["forget_prob"] == 0.25 and len(loaded.curves) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": 3}', None])
def test_a_damaged_or_missing_results_file_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="results.json"):
        load_run(tmp_path)


def test_the_terminal_table_has_a_row_a_run():
    assert terminal_table([run("a").row(), {"name": "b", "seconds": None}]).row_count == 2


@pytest.mark.parametrize(
    ("curve", "label"),
    [("forget_prob", "steps of training"), ("prob_layer_14", "strength"), ("own", None)],
)
def test_a_curve_says_what_its_axes_are(curve, label):
    attack = {"label": "relearn", "curves": {"audited": {curve: [(0, 0.1), (1, 0.5)]}}}
    (svg,) = curves_of(attack)
    named = [text for text in (label, "probability of the answers") if text and text in svg]
    assert len(named) == (2 if label else 0)
