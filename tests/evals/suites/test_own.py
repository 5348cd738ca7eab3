"""One's own data: TOFU's metrics under one's own names, whatever sets and columns there are."""

import dataclasses
import json

import numpy as np
import pytest
from evals import small
from scipy import stats

from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource
from jaxforget.data.template import Template
from jaxforget.engine.errors import UserError
from jaxforget.evals import tofu
from jaxforget.evals.suites import own
from jaxforget.evals.suites.suite import Judged

SETTINGS = own.OwnSuite(max_new_tokens=6, batch_size=4)


@pytest.fixture(scope="module")
def judged():
    lm = small.model()
    return Judged(lm, lm.params, Template(), 128)


def sets():
    known = small.records()
    return {
        "forget": known["forget"],
        "retain": known["retain"],
        "holdout": known["world_facts"][:4],
        "facts": [dataclasses.replace(each, extra={}) for each in known["real_authors"]],
    }


@pytest.fixture(scope="module")
def found(judged):
    return own.evaluate(judged, sets(), SETTINGS)


def test_sets_that_tofu_has_too_get_its_numbers(judged, found):
    names = ("forget", "retain", "holdout")
    want = tofu.evaluate(
        judged.lm,
        judged.params,
        {name: sets()[name] for name in names},
        template=judged.template,
        max_length=128,
        max_new_tokens=6,
        batch_size=4,
    )
    shared = [name for name in want.metrics if name != "model_utility"]
    assert len(shared) > 25
    for name in shared:
        assert found.metrics[name] == want.metrics[name] or found.metrics[name] == pytest.approx(
            want.metrics[name], rel=1e-4, abs=1e-6
        ), name
    assert {"retain_extraction_strength", "facts_exact_memorization"} <= set(found.metrics)


def test_a_further_set_is_judged_under_its_own_name(judged, found):
    nll = []
    for record in sets()["facts"]:
        before = f"Question: {record.prompt}\nAnswer: "
        whole = f"{before}{record.answer}{judged.lm.tokenizer.eos_token}"
        nll.append(-small.reference_logp(judged.lm, whole, len(before)).mean())
    assert found.metrics["facts_prob"] == pytest.approx(np.exp(-np.array(nll)).mean(), rel=2e-4)
    assert "facts_truth_ratio" not in found.metrics
    assert len([each for each in found.generations if each["set"] == "facts"]) == 6
    assert not [each for each in found.generations if each["set"] == "holdout"]


def test_utility_is_the_harmonic_mean_of_what_there_is_of_the_kept_sets(found):
    names = ("retain_prob", "retain_rouge", "retain_truth_ratio", "facts_prob", "facts_rouge")
    parts = [found.metrics[name] for name in names]
    want = stats.hmean(parts) if min(parts) > 0 else 0.0
    assert found.metrics["model_utility"] == pytest.approx(want)


def test_an_oracle_gives_forget_quality_and_privleak(judged, found):
    other = small.model(3)
    oracle = own.evaluate(
        dataclasses.replace(judged, lm=other, params=other.params),
        sets(),
        dataclasses.replace(SETTINGS, generate=False),
    )
    again = own.evaluate(judged, sets(), dataclasses.replace(SETTINGS, generate=False), oracle.rows)
    ratios = [each.rows["forget"]["truth_ratio"] for each in (again, oracle)]
    assert again.metrics["forget_quality"] == pytest.approx(stats.ks_2samp(*ratios).pvalue)
    assert again.metrics["privleak"] is not None and found.metrics["privleak"] is None
    assert again.metrics["forget_prob"] == found.metrics["forget_prob"]


def test_plain_text_is_scored_but_not_asked(judged):
    text = [Record("", record.answer, i, "t.txt") for i, record in enumerate(sets()["facts"])]
    got = own.evaluate(judged, {"forget": text}, SETTINGS)
    assert got.metrics["forget_prob"] > 0 and got.metrics["forget_rouge"] is None
    assert "plain text" in got.reasons["forget_rouge"] and not got.generations
    assert got.metrics["model_utility"] is None


def test_columns_of_any_name_are_read(tmp_path):
    file = tmp_path / "d.jsonl"
    row = {"frage": "Wer?", "antwort": "Ada", "anders": "Es war Ada", "falsch": ["Bob", "Cyd"]}
    file.write_text(json.dumps(row) + "\n")
    columns = {
        "prompt": "frage",
        "answer": "antwort",
        "paraphrased_answer": "anders",
        "perturbed_answer": "falsch",
    }
    source = DataSource(str(file), columns=columns)
    (record,) = own.read(own.OwnSuite(forget=source))["forget"]
    assert (record.prompt, record.answer) == ("Wer?", "Ada")
    assert record.extra == {"paraphrased_answer": "Es war Ada", "perturbed_answer": ["Bob", "Cyd"]}
    with pytest.raises(UserError, match="columns.perturbed_answer is 'falsh'. Did you mean 'fals"):
        own.read(own.OwnSuite(forget=DataSource(str(file), columns={**columns, WRONG: "falsh"})))


WRONG = "perturbed_answer"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "names no set"),
        ({"holdout": DataSource("x.jsonl")}, "compared with evaluate.forget"),
        ({"others": {"holdout": DataSource("x.jsonl")}}, "cannot be the name of a set"),
        ({"others": {"my set": DataSource("x.jsonl")}}, "cannot be the name of a set"),
        ({"others": {"forget_paper": DataSource("x.jsonl")}}, "cannot be the name of a set"),
        ({"forget": DataSource("x.jsonl"), "gradient_norms": True}, "those of evaluate.holdout"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        own.read(own.OwnSuite(**settings))
