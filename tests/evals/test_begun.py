"""What the teacher-forced pass tells of greedy answers."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from evals import small

from jaxforget.data.pack import pack_all
from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids
from jaxforget.evals import generated
from jaxforget.evals.answers import score_answers
from jaxforget.evals.begun import known_beginnings

COUNT, LENGTH = 8, 128


@pytest.fixture(scope="module")
def sets():
    """The first record's answer is learned; of the second the beginning, of the third a variant."""
    records = small.records()["forget"][:4]
    answers = [records[0].answer, f"{records[1].answer[:12]} unlike", "other", "nothing"]
    kept = ["something else", "something else", records[2].answer, "something else"]
    made = zip(records, answers, kept, strict=True)
    return {
        "forget": [replace(r, answer=a, extra={"perturbed_answer": [k, "no"]}) for r, a, k in made]
    }


@pytest.fixture(scope="module")
def lm():
    """A model that has learned the true answers by heart."""
    lm, (batch,) = (
        small.model(),
        pack_all(small.tokens(small.records()["forget"][:4]), rows=2, length=LENGTH),
    )
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        loss = lambda params: -lm.score(params, batch).logp.sum()  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, state = lm.params, optimizer.init(lm.params)
    for _ in range(150):
        params, state = step(params, state)
    return replace(lm, params=params)


def test_beginnings_are_what_the_model_says(lm, sets):
    records = sets["forget"]
    prompts = prompt_ids(records, lm.tokenizer, Template(), LENGTH)
    said = lm.generate(lm.params, prompts, max_new_tokens=COUNT)
    scored = score_answers(lm, lm.params, sets, Template(), LENGTH)
    begun = known_beginnings(scored, "forget", prompts)
    for tokens, known in zip(said, begun, strict=True):
        least = min(len(tokens), len(known))
        assert known[:least].tolist() == tokens[:least].tolist()
    assert len(begun[0]) > 2 and len(begun[1]) > 0 and len(begun[2]) > 2


def test_answers_are_the_same_with_and_without_what_is_known(lm, sets, monkeypatch):
    scored = score_answers(lm, lm.params, sets, Template(), LENGTH)
    options = sets, Template(), LENGTH, COUNT, 2, lambda *_: None
    plain = generated.generate_answers(lm, lm.params, *options)
    given = []
    original = generated.known_beginnings

    def watched(*args):
        given.extend(original(*args))
        return given

    monkeypatch.setattr(generated, "known_beginnings", watched)
    assert generated.generate_answers(lm, lm.params, *options, scored=scored) == plain
    assert sum(map(len, given)) > 4


def test_an_answer_behind_another_prompt_tells_nothing(lm, sets):
    prompts = prompt_ids(sets["forget"], lm.tokenizer, Template(), LENGTH)
    scored = score_answers(lm, lm.params, sets, Template(), LENGTH)
    other = [np.append(prompt, prompt[-1]) for prompt in prompts]
    assert [len(known) for known in known_beginnings(scored, "forget", other)] == [0] * 4
