"""MUSE: its layouts of files, and every score made again by hand."""

import dataclasses
import json

import numpy as np
import pytest
from evals import small
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score

from jaxforget.data.sources import DataSource
from jaxforget.data.template import Template
from jaxforget.engine.errors import UserError
from jaxforget.evals.suites import muse
from jaxforget.evals.suites.suite import Judged

TEXTS = [record.answer for record in small.records()["retain"]]
PAIRS = [(record.prompt, record.answer) for record in small.records()["forget"]]

CORPUS = {
    "verbmem/forget": [{"prompt": a, "gt": b} for a, b in zip(TEXTS[:3], TEXTS[3:6], strict=True)],
    "knowmem/forget_qa": [{"question": q, "answer": a} for q, a in PAIRS[:3]],
    "knowmem/forget_qa_icl": [{"question": q, "answer": a} for q, a in PAIRS[3:]],
    "knowmem/retain_qa": [{"question": q, "answer": a} for q, a in PAIRS[1:3]],
    "privleak/forget": [{"text": text} for text in TEXTS[:3]],
    "privleak/holdout": [{"text": text} for text in TEXTS[3:5]],
    "privleak/retain": [{"text": text} for text in TEXTS[5:]],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    place = tmp_path_factory.mktemp("muse")
    for name, rows in CORPUS.items():
        file = place / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(rows))  # one array, as the benchmark's own files
    return place


@pytest.fixture(scope="module")
def judged():
    lm = small.model()
    return Judged(lm, lm.params, Template(kind="plain", question_tag="never used"), 512)


@pytest.fixture(scope="module")
def settings(corpus):
    return muse.MuseSuite(corpus=str(corpus), shots=2, verbmem_tokens=8, knowmem_tokens=6)


@pytest.fixture(scope="module")
def found(judged, settings):
    return muse.evaluate(judged, muse.read(settings), settings)


def written(lm, prompt, count):
    """A greedy continuation of a text on its own."""
    ids = np.asarray(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"], np.int32)
    (made,) = lm.generate(lm.params, [ids], max_new_tokens=count)
    return lm.tokenizer.decode(made.tolist(), skip_special_tokens=True)


def test_verbmem_is_the_overlap_of_continuations_with_the_first_tokens_of_the_truth(judged, found):
    scorer, scores = RougeScorer(["rougeL"], use_stemmer=False), []
    tokenizer = judged.lm.tokenizer
    for row in CORPUS["verbmem/forget"]:
        ids = tokenizer(f" {row['gt']}", add_special_tokens=False)["input_ids"][:8]
        answer = written(judged.lm, row["prompt"], 8)
        scores.append(scorer.score(tokenizer.decode(ids), answer)["rougeL"].fmeasure)
    assert found.metrics["forget_verbmem"] == pytest.approx(np.mean(scores))
    nll = [
        -small.reference_logp(judged.lm, f"{row['prompt']} {row['gt']}", len(row["prompt"])).mean()
        for row in CORPUS["verbmem/forget"]
    ]
    np.testing.assert_allclose(found.rows["verbmem"]["nll"], nll, rtol=1e-4)
    assert 0 <= found.metrics["extraction_strength"] <= 1


def test_knowmem_asks_behind_examples_and_cuts_what_follows(judged, found):
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    shown = "".join(
        f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
        for row in CORPUS["knowmem/forget_qa_icl"][:2]
    )
    for kind, before in (("forget", shown), ("retain", "")):
        scores = []
        for row in CORPUS[f"knowmem/{kind}_qa"]:
            answer = written(judged.lm, f"{before}Question: {row['question']}\nAnswer:", 6)
            for stop in ("\n\n", "\nQuestion", "Question:"):
                answer = answer.split(stop)[0]
            scores.append(scorer.score(row["answer"], answer)["rougeL"].fmeasure)
        assert found.metrics[f"{kind}_knowmem"] == pytest.approx(np.mean(scores))


def lowest(lm, text):
    logp = np.sort(small.reference_logp(lm, text, 0))
    return logp[: max(1, int(0.4 * len(logp)))].mean()


def test_privleak_is_the_distance_of_the_attacks_failures_from_the_oracles(judged, settings, found):
    other = small.model(3)
    oracle = muse.evaluate(
        dataclasses.replace(judged, lm=other, params=other.params), muse.read(settings), settings
    )
    again = muse.evaluate(judged, muse.read(settings), settings, oracle.rows)
    fails = []
    for lm in (judged.lm, other):
        sides = [
            [lowest(lm, row["text"]) for row in CORPUS[f"privleak/{name}"]]
            for name in ("forget", "holdout")
        ]
        fails.append(1 - roc_auc_score([1] * 3 + [0] * 2, [*sides[0], *sides[1]]))
    assert found.metrics["mia_min_k_auc"] == pytest.approx(1 - fails[0])
    if fails[1] == 0:
        assert again.metrics["privleak"] is None
    else:
        want = 100 * (fails[0] - fails[1]) / fails[1]
        assert again.metrics["privleak"] == pytest.approx(want)
    kept = [lowest(judged.lm, row["text"]) for row in CORPUS["privleak/retain"]]
    rest = [lowest(judged.lm, row["text"]) for row in CORPUS["privleak/holdout"]]
    want = roc_auc_score([1] * len(kept) + [0] * 2, [*kept, *rest])
    assert found.metrics["retain_mia_min_k_auc"] == pytest.approx(want)
    assert found.metrics["privleak"] is None and "no oracle" in found.reasons["privleak"]


def test_peer_compat_measures_privleak_from_one_half_and_stems(judged, settings):
    compat = dataclasses.replace(settings, peer_compat=True)
    got = muse.evaluate(judged, muse.read(compat), compat)
    auc = got.metrics["mia_min_k_auc"]
    assert got.metrics["privleak"] == pytest.approx(100 * (1 - auc - 0.5) / 0.5)


def test_a_corpus_of_the_hub_is_asked_for_by_configuration_and_split():
    sources = muse._corpus("muse-bench/MUSE-Books")
    assert set(sources) == set(muse.PLACES)
    assert sources["verbmem"] == DataSource(
        "muse-bench/MUSE-Books", "verbmem", "forget", {"prompt": "prompt", "answer": "gt"}
    )
    assert (sources["retain_qa_icl"].name, sources["retain_qa_icl"].split) == (
        "knowmem",
        "retain_qa_icl",
    )


def test_single_sets_take_the_usual_columns_unless_told(tmp_path, corpus):
    file = tmp_path / "v.jsonl"
    file.write_text('{"start": "a b", "rest": "\\nc"}\n{"start": "a ", "rest": "c"}\n')
    columns = {"prompt": "start", "answer": "rest"}
    own = muse.read(muse.MuseSuite(verbmem=DataSource(str(file), columns=columns)))
    assert [each.answer for each in own["verbmem"]] == ["\nc", "c"]
    usual = muse.MuseSuite(verbmem=DataSource(str(corpus / "verbmem" / "forget.json")), limit=2)
    assert len(muse.read(usual)["verbmem"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "give `corpus`"),
        ({"corpus": "./no/where"}, "there is no folder"),
        ({"privleak_forget": DataSource("x.jsonl")}, "compared with privleak_holdout"),
        ({"privleak_holdout": DataSource("x.jsonl")}, "compared with privleak_forget"),
        ({"forget_qa_icl": DataSource("x.jsonl")}, "no forget_qa to stand before"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        muse.read(muse.MuseSuite(**change))


@pytest.mark.parametrize("name", ["verbmem", "forget_qa"])
def test_plain_text_is_nothing_to_ask(corpus, name):
    text = DataSource(str(corpus / "privleak" / "forget.json"), columns={"text": "text"})
    with pytest.raises(UserError, match=f"evaluate.{name}: .* holds plain text"):
        muse.read(muse.MuseSuite(**{name: text}))
