"""LUME: both layouts of files, every score made again by hand, and the score of all of them."""

import json
import statistics

import numpy as np
import pytest
from evals import small
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score

from jaxforget.data import lume as files
from jaxforget.data.choices import ChoiceData
from jaxforget.data.sources import DataSource
from jaxforget.data.template import Template
from jaxforget.engine.errors import UserError
from jaxforget.evals.suites import lume
from jaxforget.evals.suites.suite import Judged

TEXTS = [record.answer for record in small.records()["retain"]]
ASKED = [(record.prompt, record.answer) for record in small.records()["forget"]]
NAMES = {"text": "document", "question": "q", "answer": "a", "task": "genre"}


def rows(first, count):
    """Documents with questions, of two tasks."""
    return [
        {"document": TEXTS[i], "q": ASKED[i][0], "a": ASKED[i][1], "genre": ("Poem", "Bio")[i % 2]}
        for i in range(first, first + count)
    ]


def write(file, some):
    file.write_text("".join(json.dumps(row) + "\n" for row in some))
    return str(file)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("lume")


@pytest.fixture(scope="module")
def settings(place):
    exam = {"question": "Which?", "choices": ["red", "blue"], "answer": 1}
    texts = {
        name: DataSource(write(place / f"{name}.jsonl", some), columns={"text": "document"})
        for name, some in (("members", rows(0, 3)), ("nonmembers", rows(3, 3)))
    }
    return lume.LumeSuite(
        forget=files.LumeData(write(place / "forget.jsonl", rows(0, 3)), columns=NAMES),
        retain=files.LumeData(write(place / "retain.jsonl", rows(2, 4)), columns=NAMES),
        mmlu=ChoiceData(write(place / "mmlu.jsonl", [exam, {**exam, "answer": 0}])),
        max_new_tokens=6,
        **texts,
    )


@pytest.fixture(scope="module")
def judged():
    lm = small.model()
    return Judged(lm, lm.params, Template(kind="none", end=False), 256)


@pytest.fixture(scope="module")
def found(judged, settings):
    return lume.evaluate(judged, lume.read(settings), settings)


def written(lm, prompt):
    ids = np.asarray(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"], np.int32)
    (made,) = lm.generate(lm.params, [ids], max_new_tokens=6)
    return lm.tokenizer.decode(made.tolist(), skip_special_tokens=True).strip()


def test_scores_are_those_of_documents_and_questions_alone(judged, found):
    scorer, parts = RougeScorer(["rougeL"], use_stemmer=True), []
    for name, first, count in (("forget", 0, 3), ("retain", 2, 4)):
        overlap, right, genre = [], [], []
        for row in rows(first, count):
            beginning, rest = files.halves(row["document"])
            answer = written(judged.lm, beginning)
            overlap.append(scorer.score(rest, answer)["rougeL"].recall)
            right.append(float(row["a"].lower() == written(judged.lm, row["q"]).lower()))
            genre.append(row["genre"].lower())
        for score, values in (("regurgitation", overlap), ("knowledge", right)):
            assert found.metrics[f"{name}_{score}"] == pytest.approx(np.mean(values))
            for task in ("bio", "poem"):
                mean = np.mean([v for v, g in zip(values, genre, strict=True) if g == task])
                assert found.metrics[f"{name}_{task}_{score}"] == pytest.approx(mean)
                parts.append(float(1 - mean if name == "forget" else mean))
    assert len(parts) == 8
    assert found.metrics["task_aggregate"] == pytest.approx(statistics.harmonic_mean(parts))


def test_exact_answers_count_but_for_capitals_and_the_whole_is_the_mean_of_three(
    judged, settings, monkeypatch
):
    data = lume.read(settings)

    def right(self, sets, *_, **__):
        return [
            {"set": name, "row": each.row, "prompt": "", "truth": "", "answer": text}
            for name, some in sets.items()
            for each in some
            for known in [each.row < (1 if name.startswith("forget") else 2)]
            for text in [f" {each.answer.strip().upper()}" if known else "no"]
        ]

    monkeypatch.setattr(Judged, "generated", right)
    got = lume.evaluate(judged, data, settings).metrics
    assert got["forget_knowledge"] == pytest.approx(1 / 3)
    assert got["retain_knowledge"] == pytest.approx(2 / 4)
    assert got["retain_regurgitation"] == pytest.approx(2 / 4)  # ROUGE knows no capitals
    # half of the forget set's poems is known and no biography, half of either that is kept
    whole = statistics.harmonic_mean([0.5, 0.5, 1, 1, 0.5, 0.5, 0.5, 0.5])
    assert got["task_aggregate"] == pytest.approx(whole)
    exam, area = got["mmlu_accuracy_letter"], got["mia_loss_auc"]
    assert got["mia_score"] == pytest.approx(1 - 2 * abs(area - 0.5))
    assert got["aggregate"] == pytest.approx((whole + got["mia_score"] + exam) / 3)


def test_membership_is_of_whole_documents(judged, found):
    sides = [
        [small.reference_logp(judged.lm, row["document"], 0).mean() for row in rows(first, 3)]
        for first in (0, 3)
    ]
    area = roc_auc_score([1] * 3 + [0] * 3, [*sides[0], *sides[1]])
    assert found.metrics["mia_loss_auc"] == pytest.approx(area)
    np.testing.assert_allclose(found.rows["holdout"]["nll"], -np.array(sides[1]), rtol=1e-4)


def test_what_is_missing_is_told_and_one_task_needs_no_column(judged, settings, place):
    bare = [{"input": q, "output": a, "id": f"x{i}qa{i}"} for i, (q, a) in enumerate(ASKED[:2])]
    bare.append({"input": "Once upon", "output": "a time.", "id": "x2sc1"})
    source = files.LumeData(write(place / "published.jsonl", bare))
    made = lume.LumeSuite(forget=source, retain=source, max_new_tokens=6)
    got = lume.evaluate(judged, lume.read(made), made)
    assert got.metrics["aggregate"] is None and got.metrics["mia_score"] is None
    assert got.reasons["aggregate"] == "missing parts: mia_score, mmlu"
    answers = [
        [each["answer"] for each in got.generations if each["set"] == s]
        for s in ("forget_question", "forget_completion")
    ]
    assert answers == [
        [written(judged.lm, q) for q, _ in ASKED[:2]],
        [written(judged.lm, "Once upon")],
    ]
    scores = [1 - got.metrics["forget_regurgitation"], 1 - got.metrics["forget_knowledge"]]
    scores += [got.metrics["retain_regurgitation"], got.metrics["retain_knowledge"]]
    assert got.metrics["task_aggregate"] == pytest.approx(statistics.harmonic_mean(scores))


@given(st.text(st.sampled_from("ab \n"), min_size=1).filter(lambda t: len(t.split()) > 1))
def test_halves_make_the_text_and_are_cut_where_they_differ_least(text):
    first, second = files.halves(text)
    assert first + second == text.strip() and first.strip() and second[0].isspace()
    bare = text.strip()
    cuts = [i for i in range(1, len(bare)) if bare[i].isspace() and not bare[i - 1].isspace()]
    assert abs(2 * len(first) - len(bare)) == min(abs(2 * cut - len(bare)) for cut in cuts)


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"text": "word"}, {}, "line 1: 'text' is one word"),
        ({"text": " "}, {}, "line 1: 'text' is blank"),
        ({"question": "q"}, {}, "`question` and `answer` need each other"),
        ({"body": "a b"}, {}, "no column to complete or to ask.*Columns there are: body"),
        ({"body": "a b"}, {"text": "boddy"}, "columns.text is 'boddy'. Did you mean 'body'"),
        ({"id": "7x", "input": "a", "output": "b"}, {}, "line 1: 'id' must end in sc or qa"),
        ({"id": "1sc1", "input": 3, "output": "b"}, {}, "line 1: 'input' must be text, is int"),
        ({"text": "a b", "task": "?"}, {}, "line 1: 'task' names no task"),
    ],
)
def test_faults_of_a_file_are_told_with_line_and_column(tmp_path, row, columns, message):
    file = write(tmp_path / "x.jsonl", [row])
    with pytest.raises(UserError, match=message):
        files.load_prompts(files.LumeData(file, columns=columns))


def test_half_of_the_membership_sets_is_refused(settings):
    alone = lume.LumeSuite(settings.forget, settings.retain, members=settings.members)
    with pytest.raises(UserError, match="members and nonmembers need each other"):
        lume.read(alone)
