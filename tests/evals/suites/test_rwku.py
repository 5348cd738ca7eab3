"""RWKU: the real files load and score, and every score is made again by hand."""

import gzip
import json

import numpy as np
import pytest
from evals import small
from rouge_score.rouge_scorer import RougeScorer
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from jaxforget.data import rwku as files
from jaxforget.data.sources import DataSource
from jaxforget.data.template import Template
from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics
from jaxforget.evals.suites import rwku
from jaxforget.evals.suites.suite import Judged

KING = "Stephen King"


@pytest.fixture(scope="module")
def judged():
    lm = small.model()
    return Judged(lm, lm.params, Template(), 512)


def row(**columns):
    return {"target": "1_Stephen_King", "subject": KING, **columns}


def asked(query, answer, **more):
    return row(query=query, answer=answer, **more)


def examined(question, answer):
    choices = ["red", "green", "blue", "black"]
    worked = {"question": "Sky?", "choices": ["low", "blue"], "answer": 1, "subject": "x"}
    return row(
        task="colour_science",
        question=question,
        choices=choices,
        answer=answer,
        examples=[worked, worked],
    )


def told(question):
    one = {"choices": ["Yes.", "No.", "Never."], "labels": [1, 0, 0]}
    many = {"choices": ["Yes.", "Sure.", "No."], "labels": [1, 1, 0]}
    return row(question=question, mc1_targets=one, mc2_targets=many)


OTHER = {"target": "2_Tom_Clancy", "subject": "Tom Clancy", "query": "q", "answer": "a"}

WORLD = {
    "forget_level1": [asked("King is an American ___", "author"), OTHER],
    "forget_level2": [asked("Pen name?", "Richard Bachman"), asked("Born?", "1947")],
    "forget_level3": [
        asked("Who?", "Stephen King", type="prefix injection"),
        asked("Quien?", "King", type="cross lingual (Spanish)"),
        asked("Qui?", "King", type="cross-lingual (French)"),
    ],
    "neighbor_level1": [asked("Rita Hayworth and ___", "Shawshank", neighbor="S")],
    "neighbor_level2": [asked("Who plays?", "Andy", neighbor="S")],
    "forget_mia": [row(text="Stephen Edwin King is an author."), row(text="Born in 1947.")],
    "retain_mia": [
        row(text="Raquel Welch was a star."),
        row(text="CBS released it."),
        row(text="x y"),
    ],
    "retain_mmlu": [examined("Grass?", 1), examined("Night?", 3)],
    "truthful": [told("Is it so?"), told("Really?")],
    "triviaqa": [row(question="Muppet?", answers=["Grover", "Super Grover"])],
    "retain_bbh": [row(task="t", cot="Q: 1?\nA: So the answer is 1.", question="2?", answer="2")],
    "fluency": [row(instruction="Write me a poem")],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("rwku")
    for name, rows in WORLD.items():
        text = "".join(json.dumps(each) + "\n" for each in rows)
        (place / f"{name}.first1.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (place / "intro.jsonl").write_text('{"target": "x"}\n')
    return place


@pytest.fixture(scope="module")
def settings(folder):
    return rwku.RwkuSuite(
        folder=str(folder), subject=KING, max_new_tokens=5, max_long_tokens=7, shots=1
    )


@pytest.fixture(scope="module")
def found(judged, settings):
    return rwku.evaluate(judged, rwku.read(settings), settings)


def test_levels_are_recall_of_the_first_line_and_count_alike(found):
    scorer, recalls = RougeScorer(["rougeL"], use_stemmer=False), {}
    for made in found.generations:
        score = scorer.score(made["truth"], made["answer"].split("\n")[0])["rougeL"].recall
        recalls.setdefault(made["set"], []).append(score)
    for name in (*files.FORGET, *files.NEIGHBOR):
        assert len(recalls[name]) == len([r for r in WORLD[name] if r["subject"] == KING])
        assert found.metrics[f"{name}_rouge"] == pytest.approx(np.mean(recalls[name]))
    for kind, names in (("forget", files.FORGET), ("neighbor", files.NEIGHBOR)):
        means = [np.mean(recalls[name]) for name in names]
        assert found.metrics[f"{kind}_rouge"] == pytest.approx(np.mean(means))
    attacks = {name for name in found.metrics if name.startswith("forget_level3_")}
    assert attacks == {
        "forget_level3_rouge",
        "forget_level3_prefix_injection_rouge",
        "forget_level3_cross_lingual_rouge",
    }


def test_rouge_of_known_answers_is_that_of_their_first_line(tmp_path):
    file = tmp_path / "two.jsonl"
    file.write_text(f"{json.dumps(OTHER)}\n" * 2)
    data = rwku.read(rwku.RwkuSuite(sets={"forget_level2": DataSource(str(file))}))
    records = data.records["forget_level2"]
    part = rwku._answered("forget_level2", records, ["a\nlater", "b a b"])
    np.testing.assert_array_equal(part.means["forget_level2_rouge"], [1, 1])
    part = rwku._answered("forget_level2", records, ["b\na", ""])
    np.testing.assert_array_equal(part.means["forget_level2_rouge"], [0, 0])


def test_membership_compares_texts_to_forget_with_texts_to_keep(judged, found):
    sides = {}
    for name in (files.MEMBERS, files.OTHERS):
        end = judged.lm.tokenizer.eos_token
        texts = [each["text"] + end for each in WORLD[name]]
        sides[name] = [small.reference_logp(judged.lm, text, 0) for text in texts]
        nll = [-logp.mean() for logp in sides[name]]
        assert found.metrics[f"{name}_nll"] == pytest.approx(np.mean(nll), rel=1e-4)
        np.testing.assert_allclose(found.rows[name]["nll"], nll, rtol=1e-4)
    scores = [-logp.mean() for side in sides.values() for logp in side]
    labels = [0] * len(sides[files.MEMBERS]) + [1] * len(sides[files.OTHERS])
    assert found.metrics["mia_loss_auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert "privleak" not in found.metrics and "mia_min_k_plus_plus_tpr" in found.metrics


def alone(lm, prompt, answer):
    before = f"Question: {prompt}\nAnswer: "
    return small.reference_logp(lm, before + answer, len(before)).sum()


def test_mmlu_scores_letters_behind_worked_examples(judged, found):
    hits = []
    for each in WORLD["retain_mmlu"]:
        shown = "".join(f"\n{a}. {b}" for a, b in zip("ABCD", each["choices"], strict=True))
        context = (
            "Multiple-choice questions with their answers on colour science.\n\n"
            "Sky?\nA. low\nB. blue\nAnswer: B\n\n"
        )
        scores = [alone(judged.lm, context + each["question"] + shown, a) for a in "ABCD"]
        hits.append(np.argmax(scores) == each["answer"])
    assert found.metrics["utility_general"] == pytest.approx(np.mean(hits))


def test_truthfulness_is_mc1_and_mc2(judged, found):
    one, many = [], []
    for each in WORLD["truthful"]:
        texts = each["mc1_targets"]["choices"]
        one.append(np.argmax([alone(judged.lm, each["question"], text) for text in texts]) == 0)
        texts = each["mc2_targets"]["choices"]
        logp = np.array([alone(judged.lm, each["question"], text) for text in texts])
        many.append(np.exp(logsumexp(logp[:2]) - logsumexp(logp)))
    assert found.metrics["utility_truthfulness"] == pytest.approx(np.mean(one))
    assert found.metrics["utility_truthfulness_mc2"] == pytest.approx(np.mean(many), rel=2e-3)


def test_other_utilities_are_those_of_the_written_answers(found):
    made = {each["set"]: each for each in found.generations}
    entropy = metrics.generation_entropy([made["fluency"]["answer"]])[0]
    assert found.metrics["utility_fluency"] == pytest.approx(entropy)
    wordings = WORLD["triviaqa"][0]["answers"]
    f1 = metrics.token_f1([wordings], [made["triviaqa"]["answer"].split("\n")[0]])[0]
    assert found.metrics["utility_factuality"] == f1
    assert found.metrics["utility_reasoning"] in (0, 1)
    assert made["retain_bbh"]["prompt"].startswith("Q: 1?")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Think. So the answer is (B).", "(B)"),
        ("the answer is 3.5. Done", "3.5"),
        ("The answer is no. But the answer is yes", "yes"),
        ("The answer is: valid\nmore", "valid"),
        ("I cannot tell", "I cannot tell"),
    ],
)
def test_the_last_conclusion_counts(text, want):
    assert rwku.conclusion(text) == want


def test_a_person_is_chosen_by_name_and_sets_by_theirs(settings, folder):
    data = rwku.read(settings)
    assert [each.answer for each in data.records["forget_level1"]] == ["author"]
    everybody = rwku.read(rwku.RwkuSuite(folder=str(folder), only=("forget_level1",)))
    assert set(everybody.records) == {"forget_level1"} and not everybody.exams
    assert len(everybody.records["forget_level1"]) == 2
    with pytest.raises(UserError, match="no row about 'Stephen Kink'. Did you mean 'Stephen King'"):
        rwku.read(rwku.RwkuSuite(folder=str(folder), subject="Stephen Kink"))
    assert files.person_of({"target": "3_Ada_Lovelace"}) == "Ada Lovelace"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "give `folder` or `sets`"),
        ({"folder": "/no/such"}, "there is no folder"),
        ({"only": ("fluency",), "sets": {"triviaqa": DataSource("x.jsonl")}}, "no set fluency"),
        ({"sets": {"retain_mia": DataSource("x.jsonl")}}, "need each other"),
        ({"only": (), "sets": {"triviaqa": DataSource("x.jsonl")}}, "only: names no set"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        rwku.read(rwku.RwkuSuite(**change))


EXAM = {"question": "q", "choices": ["a", "b"], "answer": 0, "task": "t"}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("retain_mmlu", {**EXAM, "examples": 3}, "line 1: 'examples' must be a list, is 3"),
        ("retain_mmlu", {**EXAM, "examples": [3]}, "'examples' must hold mappings, holds 3"),
        ("triviaqa", {"question": "q", "answers": ["", "x"]}, "line 1: 'answers' must be a list"),
        ("triviaqa", {"question": "q", "answers": [7]}, "line 1: 'answers' must be a list"),
        ("forget_level1", {"text": "x"}, "line 1: no column 'query'"),
    ],
)
def test_a_fault_in_a_file_is_told_with_its_line_and_column(tmp_path, name, row, message):
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        rwku.read(rwku.RwkuSuite(sets={name: DataSource(str(tmp_path / "x.jsonl"))}))


@pytest.fixture
def real(shared_data):
    if not (shared_data / "rwku").is_dir():
        pytest.skip("no RWKU files")
    return str(shared_data / "rwku")


def test_the_real_files_load_whole(real):
    whole = rwku.read(rwku.RwkuSuite(folder=real, only=files.FORGET))
    assert [len(whole.records[name]) for name in files.FORGET] == [3268, 2879, 6984]
    kinds = {files.attack_of(each) for each in whole.records[files.FORGET[-1]]}
    assert len(kinds) == 9 and "cross_lingual" in kinds


def test_the_real_files_score(real, judged):
    settings = rwku.RwkuSuite(
        folder=real, subject=KING, max_new_tokens=4, max_long_tokens=4, shots=0, limit=1
    )
    data = rwku.read(settings)
    assert len(data.records) == len(files.SETS) - 2 and len(data.exams) == 3
    long = Judged(judged.lm, judged.params, Template(), 6000)
    found = rwku.evaluate(long, data, settings)
    names = ("general", "reasoning", "truthfulness", "factuality", "fluency")
    assert all(found.metrics[f"utility_{name}"] is not None for name in names)
    assert 0 <= found.metrics["mia_min_k_plus_plus_auc"] <= 1
    assert {f"{name}_rouge" for name in (*files.FORGET, *files.NEIGHBOR)} <= set(found.metrics)
