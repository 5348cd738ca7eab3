"""Multiple choice: every score of every choice again, alone and in float64."""

import numpy as np
import pytest
from evals import small
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from jaxforget.data import shared_beginnings
from jaxforget.data.choices import ChoiceData, Question
from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.evals import choices, teacher_forced
from jaxforget.evals.suites import choice
from jaxforget.evals.suites.suite import Judged

TEMPLATE = Template()


def questions():
    """Three to five choices each: the answers of several fictitious people."""
    records = small.records()["forget"]
    texts = [record.answer for record in records]
    made = []
    for index, record in enumerate(records):
        some = [texts[(index + step) % len(texts)] for step in range(3 + index % 3)]
        place = index % len(some)
        some[0], some[place] = some[place], some[0]
        made.append(Question(record.prompt, tuple(some), (place,), index, "q.jsonl"))
    return made


DATA = choice.ChoiceQuestions({"people": questions(), "few": questions()[:2]})


@pytest.fixture(scope="module")
def lm():
    return small.model()


@pytest.fixture(scope="module")
def judged(lm):
    return Judged(lm, lm.params, TEMPLATE, 256)


@pytest.fixture(scope="module")
def found(judged):
    settings = choice.ChoiceSuite(tasks={}, letters=True)
    return choice.evaluate(judged, DATA, settings)


def alone(lm, prompt, answer):
    """Float64 log-probabilities of an answer's tokens."""
    before = f"Question: {prompt}\nAnswer: "
    return small.reference_logp(lm, before + answer, len(before))


def test_accuracies_are_those_of_choices_scored_alone(lm, found):
    hits, mass = {key: [] for key in ("sum", "token", "character", "blank")}, []
    for question in questions():
        parts = [alone(lm, question.text, text) for text in question.choices]
        sums = np.array([part.sum() for part in parts])
        by = {
            "sum": sums,
            "token": sums / [len(part) for part in parts],
            "character": sums / [len(text) for text in question.choices],
            "blank": sums - [alone(lm, "N/A", text).sum() for text in question.choices],
        }
        (right,) = question.correct
        for key, scores in by.items():
            hits[key].append(scores.argmax() == right)
        mass.append(np.exp(sums[right] - logsumexp(sums)))
    names = {"sum": "", "token": "_per_token", "character": "_per_character"}
    for key, values in hits.items():
        name = f"people_accuracy{names.get(key, '_calibrated')}"
        assert found.metrics[name] == pytest.approx(np.mean(values)), name
    assert found.metrics["people_prob"] == pytest.approx(np.mean(mass), rel=2e-4)
    np.testing.assert_allclose(found.rows["people"]["prob"], mass, rtol=2e-3)


def test_letters_are_scored_after_the_choices_are_shown(lm, found):
    hits, mass = [], []
    for question in questions():
        letters = "ABCDE"[: len(question.choices)]
        lines = [f"{a}. {b}" for a, b in zip(letters, question.choices, strict=True)]
        shown = "\n".join([question.text, *lines])
        sums = np.array([alone(lm, shown, letter).sum() for letter in letters])
        hits.append(sums.argmax() == question.correct[0])
        mass.append(np.exp(sums[question.correct[0]] - logsumexp(sums)))
    assert found.metrics["people_accuracy_letter"] == pytest.approx(np.mean(hits))
    np.testing.assert_allclose(found.rows["people"]["prob_letter"], mass, rtol=2e-3)


@pytest.mark.parametrize("kind", ["plain", "none"])
def test_choices_are_scored_from_the_same_tokens_on(lm, kind):
    """The blank is a token before some words and part of others."""
    words = ["Maria", "red", "7", "the"]
    first = [lm.tokenizer(f": {word}", add_special_tokens=False).tokens()[1] for word in words]
    assert "\u0120" in first and any(token != "\u0120" for token in first)
    prompt = "Who?" if kind == "plain" else "Question: Who?\nAnswer: "
    records = [Record(prompt, word, row, "q.jsonl") for row, word in enumerate(words)]
    judged = Judged(lm, lm.params, Template(kind=kind), 64)
    sums, counts = choices.answer_logp(judged, records)
    before = "Question: Who?\nAnswer:"
    for word, total, count in zip(words, sums, counts, strict=True):
        expected = small.reference_logp(lm, f"{before} {word}", len(before))
        np.testing.assert_allclose(total, expected.sum(), rtol=2e-4, err_msg=word)
        assert count == len(expected)


def test_every_accuracy_has_an_interval_and_tasks_stay_apart(found):
    for name in ("people_accuracy", "few_accuracy_per_token", "people_prob"):
        low, high = found.intervals[name]
        assert low <= found.metrics[name] <= high
    assert len(found.rows["few"]["row"]) == 2
    np.testing.assert_allclose(found.rows["few"]["prob"], found.rows["people"]["prob"][:2])


def test_the_same_text_is_scored_once(judged, monkeypatch):
    seen = []
    whole = choices.answer_logp

    def counting(judged, records):
        seen.append(len(records))
        return whole(judged, records)

    monkeypatch.setattr(choices, "answer_logp", counting)
    choices.choice_likelihoods(judged, {"a": questions(), "b": questions()})
    count = sum(len(each.choices) for each in questions())
    assert seen == [count + len({text for each in questions() for text in each.choices})]


def test_choices_share_their_question_and_devices_change_nothing(lm, judged, found, monkeypatch):
    packed = []
    whole = shared_beginnings.pack_shared
    monkeypatch.setattr(
        teacher_forced, "pack_shared", lambda *a, **k: packed.append(a) or whole(*a, **k)
    )
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=4))
    spread = meshes.put(lm.params, meshes.shardings(lm.params, mesh))
    there = Judged(lm, spread, TEMPLATE, 256)
    one, eight = (choices.choice_likelihoods(j, {"q": questions()})["q"] for j in (judged, there))
    assert len(packed) == 2
    np.testing.assert_allclose(eight.logp, one.logp, rtol=1e-5)
    np.testing.assert_allclose(eight.blank, one.blank, rtol=1e-5)


def test_the_end_of_the_text_is_no_part_of_a_choice(lm):
    ended, bare = (Judged(lm, lm.params, Template(end=end), 256) for end in (True, False))
    both = [choices.choice_likelihoods(each, {"q": questions()[:2]})["q"] for each in (ended, bare)]
    np.testing.assert_array_equal(both[0].logp, both[1].logp)
    np.testing.assert_array_equal(both[0].tokens, both[1].tokens)


def test_choices_that_would_be_cut_are_refused(lm):
    short = Judged(lm, lm.params, TEMPLATE, 30)
    with pytest.raises(UserError, match="raise max_length"):
        choices.choice_likelihoods(short, {"q": questions()})


ragged = st.lists(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=5),
    min_size=1,
    max_size=6,
)


@given(ragged)
def test_ties_share_the_credit_and_masses_are_probabilities(some):
    scores = np.array([float(s) for part in some for s, _ in part])
    marks = np.array([m for part in some for _, m in part])
    offsets = np.cumsum([0, *map(len, some)])
    got = choices.accuracies(scores, offsets, marks)
    mass = choices.right_mass(scores, offsets, marks)
    for part, value, share in zip(some, got, mass, strict=True):
        best = max(s for s, _ in part)
        tied = [m for s, m in part if s == best]
        assert value == pytest.approx(sum(tied) / len(tied))
        total = sum(np.exp(float(s)) for s, _ in part)
        assert share == pytest.approx(sum(np.exp(float(s)) for s, m in part if m) / total)


def test_settings_without_tasks_or_with_odd_names_are_refused():
    with pytest.raises(UserError, match="names no set of questions"):
        choice.read(choice.ChoiceSuite(tasks={}))
    with pytest.raises(UserError, match="must be one word"):
        choice.read(choice.ChoiceSuite(tasks={"a b": ChoiceData("q.jsonl")}))


@given(st.lists(st.lists(st.floats(-50, 0), min_size=2, max_size=5), min_size=1, max_size=4))
def test_entropy_is_of_the_choices_own_distribution(some):
    offsets = np.cumsum([0, *map(len, some)])
    found = choices.choice_entropy(np.concatenate(some), offsets)
    for value, part in zip(found, some, strict=True):
        shares = np.exp(part - logsumexp(part))
        expected = -(shares * (part - logsumexp(part))).sum() / np.log(len(part))
        np.testing.assert_allclose(value, expected, atol=1e-9)


def test_entropy_ends_at_guessing_and_at_certainty():
    found = choices.choice_entropy(np.asarray([-3.0, -3, -3, 0, -800]), np.asarray([0, 3, 5]))
    np.testing.assert_allclose(found, [1.0, 0.0], atol=1e-12)


def test_the_forget_ratio_is_nothing_unchanged_and_one_at_chance():
    right = np.asarray([1.0, 1, 1, 0])
    assert (choices.forget_ratio(right, right, 0.25) == 0).all()
    assert choices.forget_ratio(right, np.asarray([0.0, 0, 1, 0]), 0.25).mean() == 1
    assert choices.forget_ratio(right, np.zeros(4), 0.25).mean() == pytest.approx(1.5)
    with pytest.raises(UserError, match="nothing to forget"):
        choices.forget_ratio(np.asarray([0.0, 0, 1, 0]), right, 0.25)
    with pytest.raises(UserError, match="4 questions before, 3 after"):
        choices.forget_ratio(right, right[:3], 0.25)
