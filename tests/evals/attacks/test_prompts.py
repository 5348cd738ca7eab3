"""Other prompts and relearning in context on a tiny model."""

import dataclasses

import numpy as np
import pytest
from evals import small
from evals.attacks.world import data, knowing
from hypothesis import given
from hypothesis import strategies as st

from jaxforget.evals.attacks import ATTACKS, prompts
from jaxforget.evals.attacks.catalogue import missing
from jaxforget.evals.attacks.in_context import InContext, _room, in_context, shot_records
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.attacks.prompts import Prompts, ask_otherwise, best_of, wordings_of


def prob_alone(lm, record, audited, template=None):
    """Of one record scored on its own."""
    audited = dataclasses.replace(audited, template=template or audited.template)
    return known(lm, lm.params, tokens_of(lm, [record], audited), audited).prob[0]


@pytest.mark.parametrize("kind", ["prefix", "template", "paraphrase", "combined"])
def test_known_is_the_best_wording_of_every_record(kind):
    lm, audited = knowing(), data(max_length=512)
    found = ask_otherwise(lm, audited, Prompts(kind))
    wordings = wordings_of(audited, Prompts(kind))
    for row in (0, len(audited.forget) - 1):
        singly = [
            prob_alone(lm, record, audited, each.template)
            for each in wordings
            for record, owner in zip(each.records, each.owner, strict=True)
            if owner == row
        ]
        np.testing.assert_allclose(found.each[row], max(singly), rtol=2e-4, atol=1e-7)
    means = [found.scores[f"prob_{each.name}"] for each in wordings]
    assert found.known >= max(means) - 1e-9 and 0 <= found.scores["rouge"] <= 1
    assert found.examples[0]["truth"] == audited.forget[0].answer
    assert ("rouge_retain" in found.scores) == (kind == "combined")


def test_every_wording_holds_its_question():
    audited = data()
    for kind in ("prefix", "combined"):
        for each in wordings_of(audited, Prompts(kind)):
            assert all(
                ours.prompt in put.prompt and ours.prompt != put.prompt
                for ours, put in zip(audited.forget, each.records, strict=True)
            )
    tags = {each.template.question_tag for each in wordings_of(audited, Prompts("template"))}
    assert len(tags) == len(prompts.FRAMES)


def test_a_chat_keeps_its_template_and_has_the_frame_inside():
    chat = dataclasses.replace(data().template, kind="chat")
    put = {each.name: each for each in wordings_of(data(template=chat), Prompts("template"))}
    question = data().forget[0].prompt
    assert put["german"].template == chat
    assert put["german"].records[0].prompt == f"Frage: {question}\nAntwort:"


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 99))
def test_the_best_of_each_owner(more, seed):
    owner = np.random.default_rng(seed).permutation([0, 1, 2, 3, *more])
    values = np.random.default_rng(seed + 1).normal(size=len(owner))
    found = best_of(values, owner, 4)
    for each in range(4):
        mine = np.flatnonzero(owner == each)
        assert found[each] == mine[values[mine].argmax()]


def test_what_the_data_lack_is_told():
    attack = ATTACKS["prompts"]
    bare = [dataclasses.replace(record, extra={}) for record in data().forget]
    assert "paraphrased_question" in missing(attack, Prompts("paraphrase"), data(forget=bare))[0]
    assert missing(attack, Prompts("combined"), data(retain=())) == ["retain"]
    plain = [dataclasses.replace(data().forget[0], prompt="")]
    assert missing(attack, Prompts(), data(forget=plain)) == ["a prompt in every record"]
    assert not missing(attack, Prompts("paraphrase"), data())
    assert "two different" in missing(ATTACKS["in_context"], InContext(), data(forget=bare[:1]))[0]


@pytest.mark.parametrize("kind", ["plain", "none", "chat"])
def test_examples_in_context_are_others_and_the_question_comes_last(kind):
    template = dataclasses.replace(data().template, kind=kind)
    audited = data(template=template)
    for shots, count in ((2, 2), (50, 5)):
        for record, put in zip(audited.forget, shot_records(audited, shots), strict=True):
            assert put.answer == record.answer and put.prompt.endswith(record.prompt)
            assert put.prompt.count(record.prompt) == 1
            behind = [o for o in audited.forget if o.answer in put.prompt and o != record]
            assert len(behind) == count
    assert shot_records(audited, 2) == shot_records(audited, 2)


def test_examples_in_context_read_like_training_examples():
    audited = data()
    first = shot_records(audited, 1)[0]
    other = next(each for each in audited.forget[1:] if each.prompt in first.prompt)
    assert first.prompt == (
        f"{other.prompt}\nAnswer: {other.answer}\n\nQuestion: {audited.forget[0].prompt}"
    )


def test_in_context_scores_the_answer_behind_the_examples():
    lm, audited = small.model(), data(max_length=512)
    found = in_context(lm, audited, InContext(shots=2))
    put = shot_records(audited, 2)
    singly = [prob_alone(lm, each, audited) for each in put]
    np.testing.assert_allclose(found.each, singly, rtol=2e-4)
    assert found.scores["prob_before"] != found.known
    assert found.examples[0]["prompt"] == put[0].prompt and found.scores["shots"] == 2


def test_in_context_shows_as_many_examples_as_there_is_room_for():
    lm, audited = small.model(), data()
    for shots in (2, 3):
        behind = tokens_of(lm, shot_records(audited, shots), data(max_length=4096))
        needed = int(behind.lengths.max())
        assert _room(lm, data(max_length=needed), 4) == shots
        assert _room(lm, data(max_length=needed - 1), 4) == shots - 1
    assert _room(lm, data(max_length=4096), 50) == len(audited.forget) - 1
    assert _room(lm, data(max_length=8), 4) == 1  # what does not fit even so is refused later
