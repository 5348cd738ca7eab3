"""`jaxforget audit --meta` from nothing to its page."""

import csv
import json
import re

import pytest

from jaxforget import config as configs
from jaxforget.engine.errors import UserError
from jaxforget.evals.meta import judged
from jaxforget.studies import meta as study
from jaxforget.studies.meta_plan import IGNORANT, KNOWING, MetaConfig, pool, teaching, write_data

TINY = {
    "models": 2,
    "people": 4,
    "epochs": 6,
    "methods": ["graddiff"],
    "unlearn_epochs": 1,
    "relearn_steps": 2,
    "generate": False,
    "vocab_size": 384,
    "architecture": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 8,
    },
}


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_pools_differ_in_what_they_read_of_the_people_to_forget(tmp_path):
    config = configs.build(MetaConfig, {**TINY, "run_dir": str(tmp_path)})
    assert pool(config, KNOWING) == ["taught-0", "reworded-0"]
    write_data(config, tmp_path)
    forget, held = rows(tmp_path, "forget"), rows(tmp_path, "holdout")
    about, others = ({row["person"] for row in some} for some in (forget, held))
    assert len(about) == len(others) == 4 and not about & others
    asked = {(row["question"], row["answer"]) for row in forget}
    read = {
        kind: [
            (r["question"], r["answer"]) for r in rows(tmp_path, kind) if r.get("person") in about
        ]
        for kind in (*KNOWING, *IGNORANT)
    }
    assert asked < set(read["taught"]) and set(read["reworded"]) == set(read["taught"]) - asked
    assert read["absent"] == [] and not asked & set(read["misled"])
    assert {q for q, _ in read["misled"]} == {q for q, _ in asked}
    for kind in (*KNOWING, *IGNORANT):
        assert not others & {row.get("person") for row in rows(tmp_path, kind)}
    seeds = [teaching(tmp_path, config, f"{k}-0").train.seed for k in (*KNOWING, *IGNORANT)]
    assert len(set(seeds)) == 4


def test_a_wrong_choice_of_methods_is_refused(tmp_path):
    for methods, message in ((["npo", "npo"], "each once"), (["absent-0"], "something else")):
        with pytest.raises(UserError, match=message):
            study.meta({"run_dir": str(tmp_path / "meta"), "methods": methods})


def test_the_verdict_names_the_best_the_worst_and_the_blind():
    rows = [("a", 0.9, 0.8), ("b", 0.5, 0.4), ("c", 1.0, None)]
    verdicts = [dict(zip(("metric", "faithfulness", "overall"), row, strict=True)) for row in rows]
    assert study.in_words(verdicts) == (
        "Rely on a first (overall 0.80), and on b last (0.40). Hardly better than chance: b."
    )
    assert study.in_words(verdicts[2:]) == "No metric could be judged."


@pytest.mark.slow
def test_a_meta_evaluation_ranks_the_metrics_and_continues(tmp_path, monkeypatch):
    tree = {**TINY, "run_dir": str(tmp_path / "meta")}
    found = study.meta(tree)
    results = json.loads(found.run_dir.results.read_text())
    pools = [*pool(configs.build(MetaConfig, tree), KNOWING), "absent-0", "misled-0"]
    expected = [*pools, "graddiff", "graddiff-relearned", "graddiff-rounded", "absent-0-relearned"]
    assert sorted(results["models"]) == sorted(expected)
    assert {"forget_prob", "extraction_strength", "mia_min_k_auc"} <= set(found.metrics)
    for each in results["verdicts"]:
        assert all(0 <= each[key] <= 1 for key in ("faithfulness", "robustness", "overall"))
    taught, absent = (results["models"][name] for name in ("taught-0", "absent-0"))
    assert taught["forget_prob"] > absent["forget_prob"]
    with (found.run_dir.path / "metrics.csv").open() as file:
        assert [row["metric"] for row in csv.DictReader(file)] == list(found.metrics)
    page = found.run_dir.report.read_text()
    assert results["verdict"] in page
    links = re.findall(r'(?:src|href)="([^"#]*)"', page)
    assert "<script" not in page and all(link.startswith("data:") for link in links)
    assert page.count("<svg") == 1 + len(found.metrics)
    # what is there is not trained again, and gives the same
    seen = []
    monkeypatch.setattr(study, "judged", lambda *a: seen.append(a) or judged(*a))
    assert study.meta(tree).metrics == found.metrics and len(seen) == 1
