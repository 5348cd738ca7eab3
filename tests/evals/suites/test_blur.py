"""BLUR: queries in both orders, the scores of each half made again by hand, and a base to equal."""

import dataclasses
import json

import numpy as np
import pytest
from evals import small
from rouge_score.rouge_scorer import RougeScorer

from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource
from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids
from jaxforget.engine.errors import UserError
from jaxforget.evals.suites import blur
from jaxforget.evals.suites.suite import Judged

PAIRS = {
    name: [(each.prompt, each.answer) for each in small.records()[name]][:count]
    for name, count in (("forget", 3), ("retain", 2))
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place, found = tmp_path_factory.mktemp("blur"), {}
    for name, pairs in PAIRS.items():
        found[name] = DataSource(str(place / f"{name}.jsonl"))
        rows = [{"question": question, "answer": answer} for question, answer in pairs]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


@pytest.fixture(scope="module")
def judged():
    lm = small.model()
    return Judged(lm, lm.params, Template(), 256)


@pytest.fixture(scope="module")
def settings(sources):
    return blur.BlurSuite(**sources, max_new_tokens=5)


@pytest.fixture(scope="module")
def found(judged, settings):
    return blur.evaluate(judged, blur.read(settings), settings)


def written(lm, prompt, answer, count):
    ids = prompt_ids([Record(prompt, answer, 0, "")], lm.tokenizer, Template(), 256)
    (made,) = lm.generate(lm.params, ids, max_new_tokens=count)
    return lm.tokenizer.decode(made.tolist(), skip_special_tokens=True).strip()


def prob(lm, prompt, answer):
    before = f"Question: {prompt}\nAnswer: "
    whole = f"{before}{answer}{lm.tokenizer.eos_token}"
    return np.exp(small.reference_logp(lm, whole, len(before)).mean())


def by_hand(lm):
    """Every mean, from single questions and single queries."""
    scorer, values = RougeScorer(["rougeL"], use_stemmer=True), {}
    alone, both = {}, {}
    for name, pairs in PAIRS.items():
        alone[name] = [
            (scorer.score(a, written(lm, q, a, 5))["rougeL"].recall, prob(lm, q, a))
            for q, a in pairs
        ]
    meetings = [(PAIRS["forget"][i], PAIRS["retain"][i % 2]) for i in range(3)]
    for order in ("forget_first", "retain_first"):
        scores = {"forget": [], "retain": []}
        for forget, retain in meetings:
            first, second = (forget, retain) if order == "forget_first" else (retain, forget)
            query = f"{first[0]} {second[0]}"
            answer = written(lm, query, first[1], 10)
            for name, (_, truth) in (("forget", forget), ("retain", retain)):
                recall = scorer.score(truth, answer)["rougeL"].recall
                scores[name].append((recall, prob(lm, query, truth)))
        for name, each in scores.items():
            both.setdefault(name, []).append(each)
            values[f"{order}_{name}_rouge"], values[f"{order}_{name}_prob"] = np.mean(each, 0)
    for name in PAIRS:
        values[f"{name}_rouge"], values[f"{name}_prob"] = np.mean(alone[name], 0)
        once = np.array([alone[name][i % len(alone[name])] for i in range(3)])
        mean = np.mean(both[name], 0)
        values[f"combined_{name}_rouge"], values[f"combined_{name}_prob"] = mean.mean(0)
        gap = (mean - once).mean(0) * (1 if name == "forget" else -1)
        values[f"{name}_gap"], values[f"{name}_gap_prob"] = gap
    return values


def test_every_score_of_each_half_is_that_of_queries_asked_alone(judged, found):
    want = by_hand(judged.lm)
    assert want["forget_first_forget_prob"] != pytest.approx(want["retain_first_forget_prob"])
    for name, value in want.items():
        assert found.metrics[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
    rest = set(found.metrics) - set(want)
    assert rest == {f"{n}_gibberish_rate" for n in ("forget", "retain", *blur.ORDERS)}
    low, high = found.intervals["forget_gap_prob"]
    assert low <= found.metrics["forget_gap_prob"] <= high


def test_queries_join_both_questions_in_both_orders(found):
    asked = {(each["set"], each["row"]): each for each in found.generations}
    assert len(asked) == 3 + 2 + 3 + 3
    (f2, a2), (r0, b0) = PAIRS["forget"][2], PAIRS["retain"][0]
    assert asked["forget_first", 2]["prompt"] == f"{f2} {r0}"
    assert asked["retain_first", 2]["prompt"] == f"{r0} {f2}"
    assert asked["retain_first", 2]["truth"] == f"{b0}\n{a2}"


def test_the_base_itself_keeps_and_knows_everything(judged, settings, found, tmp_path):
    (tmp_path / "examples.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in found.examples())
    )
    again = dataclasses.replace(settings, base=str(tmp_path))
    same = blur.evaluate(judged, blur.read(again), again)
    assert same.metrics["forget_rouge"] == same.metrics["retain_rouge"] == 1
    assert found.metrics["forget_rouge"] < 1  # against the files' answers it is not
    assert same.metrics["forget_prob"] == found.metrics["forget_prob"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "Another?"}, "has no answer to row 1 of .*retain.jsonl in the retain set"),
        ({"answer": " "}, "line 5: the base answered nothing"),
        ({"row": 9}, "judge the base with this suite"),
    ],
)
def test_a_base_of_other_questions_is_refused(settings, found, tmp_path, change, message):
    rows = list(found.examples())
    assert [rows[4]["set"], rows[4]["row"]] == ["retain", 1]
    rows[4] = {**rows[4], **change}
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(UserError, match=message):
        blur.read(dataclasses.replace(settings, base=str(file)))


@pytest.mark.parametrize("name", ["forget", "half", "two words"])
def test_names_of_texts_to_relearn_from_are_ones_own(settings, sources, name):
    with pytest.raises(UserError, match="must be one word, and none of forget, retain, half"):
        blur.read(dataclasses.replace(settings, relearn={name: sources["retain"]}))


def test_texts_to_relearn_from_are_read_before_anything_is_computed(settings):
    lost = {"near": DataSource("/no/such.jsonl")}
    with pytest.raises(UserError, match="no such file: /no/such.jsonl"):
        blur.read(dataclasses.replace(settings, relearn=lost))
