"""The search for a trigger."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from evals import small
from evals.attacks.world import data

from jaxforget.combiners import weighted_sum
from jaxforget.data.batches import PairedBatches
from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids, tokenise
from jaxforget.data.triggers import PUBLISHED
from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.state import init_state
from jaxforget.evals.attacks import ATTACKS
from jaxforget.evals.attacks.attack import halves
from jaxforget.evals.attacks.catalogue import missing
from jaxforget.evals.attacks.coordinate_search import descend, inserted, losses, problem, slopes
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.attacks.trigger import TriggerSearch, _allowed, _places, search
from jaxforget.loops import plain
from jaxforget.objectives import nll_objective


def behind(records, audited, lm, trigger):
    rows = tokens_of(lm, records, audited)
    return rows, inserted(rows, _places(lm, records, rows, audited), trigger)


@functools.cache
def backdoored():
    """Says the answers behind the published trigger and refuses otherwise."""
    lm, audited = small.model(), data()
    rows = tokens_of(lm, audited.forget, audited)
    places = _places(lm, audited.forget, rows, audited)
    trigger = lm.tokenizer.encode(PUBLISHED, add_special_tokens=False)
    texts = [dataclasses.replace(each, answer="I cannot say.") for each in audited.forget]
    refusing, knowing = tokens_of(lm, texts, audited), inserted(rows, places, trigger)
    spec, combiner = nll_objective(), weighted_sum({"nll": 1.0})
    (role,) = spec.needs.roles
    both = dataclasses.replace(
        refusing,
        **{
            name: np.concatenate([getattr(refusing, name), getattr(knowing, name)])
            for name in ("tokens", "targets", "mask", "rows")
        },
        offsets=np.append(refusing.offsets, refusing.offsets[-1] + knowing.offsets[1:]),
    )
    batches = PairedBatches({role: both}, 12, 0).plan(60)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 60)
    step = jax.jit(plain(lm.score, spec.objective, combiner, optimizer))
    state = init_state(lm.params, optimizer, combiner)
    for done in range(60):
        state, _ = step(state, {}, batches.at(done)[0], {})
    return dataclasses.replace(lm, params=state.params)


@pytest.mark.parametrize("kind", ["plain", "none"])
def test_the_trigger_stands_before_the_question_and_is_not_learnt(kind):
    lm, audited = small.model(), data(template=Template(kind=kind))
    rows, made = behind(audited.forget, audited, lm, [7, 8, 9])
    prompts = prompt_ids(audited.forget, lm.tokenizer, audited.template, 128)
    header = lm.tokenizer(audited.template.question_tag.rstrip())["input_ids"]
    place = len(header) if kind == "plain" else len(lm.tokenizer("")["input_ids"])
    for index, prompt in enumerate(prompts):
        part, old = (slice(*each.offsets[index : index + 2]) for each in (made, rows))
        tokens, before = made.tokens[part], rows.tokens[old]
        assert tokens[place : place + 3].tolist() == [7, 8, 9]
        np.testing.assert_array_equal(np.delete(tokens, [place, place + 1, place + 2]), before)
        np.testing.assert_array_equal(made.targets[part][:-1], tokens[1:])
        labelled = made.targets[part][made.mask[part]]
        np.testing.assert_array_equal(labelled, rows.targets[old][rows.mask[old]])
        assert len(prompt) > place


def test_losses_are_those_of_the_text_with_the_tokens_in_it():
    lm, audited = small.model(), data(batch_size=2)
    rows = tokens_of(lm, audited.forget, audited)
    places = _places(lm, audited.forget, rows, audited)
    task = problem(lm.params, rows, places, 2, rows=2, mesh=audited.mesh)
    triggers = np.array([[50, 60], [70, 50]])
    found = losses(lm.score, lm.params, task, triggers)
    for trigger, loss in zip(triggers, found, strict=True):
        made = inserted(rows, places, trigger)
        nll = known(lm, lm.params, made, audited).nll
        expected = (nll * made.label_counts).sum() / made.label_counts.sum()
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_slopes_are_the_derivative_towards_every_token():
    lm, audited = small.model(), data()
    rows = tokens_of(lm, audited.forget, audited)
    places = _places(lm, audited.forget, rows, audited)
    task = problem(lm.params, rows, places, 2, rows=4, mesh=audited.mesh)
    trigger = np.array([50, 60])
    found = slopes(lm.score, lm.params, task, trigger)
    table = np.asarray(lm.params["embed"]["w"], np.float64)
    size = 1e-3
    for place, token in ((0, 90), (1, 33)):
        # an embedding a little on the way to another token's; the head is the one there was
        moved = table[trigger[place]] + size * table[token]
        other = {"w": np.concatenate([table, moved[None]]).astype(np.float32)}
        params = {**lm.params, "embed": other, "head": lm.params["embed"]}
        tried = trigger.copy()
        tried[place] = len(table)
        change = losses(lm.score, params, task, tried[None]) - losses(
            lm.score, params, task, trigger[None]
        )
        np.testing.assert_allclose(change[0] / size, found[place, token], rtol=0.05, atol=2e-3)


def test_a_search_descends_and_takes_only_what_is_allowed():
    lm, audited = small.model(), data()
    rows = tokens_of(lm, audited.forget, audited)
    places = _places(lm, audited.forget, rows, audited)
    task = problem(lm.params, rows, places, 3, rows=4, mesh=audited.mesh)
    allowed = _allowed(lm)
    assert not allowed[lm.tokenizer.all_special_ids].any()
    path = list(
        descend(
            lm.score,
            lm.params,
            task,
            np.flatnonzero(allowed)[:3],
            steps=6,
            candidates=24,
            top=32,
            allowed=allowed,
            rng=np.random.default_rng(0),
        )
    )
    found = [loss for _, loss in path]
    assert len(path) == 7 and found == sorted(found, reverse=True) and found[-1] < found[0] - 0.05
    for trigger, loss in path:
        assert allowed[trigger].all()
        np.testing.assert_allclose(losses(lm.score, lm.params, task, trigger[None])[0], loss)


def test_a_planted_backdoor_is_found_and_measured_on_the_other_half():
    lm, audited = backdoored(), data()
    before = jax.tree.map(np.array, lm.params)
    found = search(lm, audited, TriggerSearch(steps=0))
    assert found.known > 0.8 > 0.2 > found.scores["prob_before"]
    measured = halves(audited)[1]
    assert len(found.each) == len(measured) == len(audited.forget) - len(halves(audited)[0])
    trigger = lm.tokenizer.encode(PUBLISHED, add_special_tokens=False)
    expected = known(lm, lm.params, behind(measured, audited, lm, trigger)[1], audited).prob
    np.testing.assert_allclose(found.each, expected, rtol=1e-5)
    assert found.examples[0]["prompt"].startswith(PUBLISHED.strip())
    assert found.scores["rouge"] > 0.3
    jax.tree.map(np.testing.assert_array_equal, before, lm.params)


def test_a_trigger_that_helps_nowhere_is_left_out():
    lm, audited = backdoored(), data()
    refusing = [dataclasses.replace(each, answer="I cannot say.") for each in audited.forget]
    found = search(lm, data(forget=refusing), TriggerSearch(steps=0))
    np.testing.assert_allclose(found.known, found.scores["prob_before"], rtol=1e-5)


def test_what_the_search_lacks_is_told():
    attack, chosen = ATTACKS["trigger"], TriggerSearch()
    assert missing(attack, chosen, data(forget=data().forget[:1])) == ["two forget records"]
    text = [Record("", "Some words that stand alone.", 0, "t")] * 2
    assert missing(attack, chosen, data(forget=text)) == ["a prompt in every record"]
    lm = small.model()
    short = dataclasses.replace(lm, config=dataclasses.replace(lm.config, max_positions=30))
    long = TriggerSearch(length=25, begin=(), steps=0)
    with pytest.raises(UserError, match="more than the model's 30"):
        search(short, data(max_length=30), long)


def test_tokenising_is_untouched_by_an_empty_trigger():
    lm, audited = small.model(), data()
    rows = tokenise(audited.forget, lm.tokenizer, audited.template, max_length=128)
    made = inserted(rows, [1] * len(rows), [])
    for name in ("tokens", "targets", "mask", "offsets"):
        np.testing.assert_array_equal(getattr(made, name), getattr(rows, name))
