"""Steps of strategies on the toy model: batches of every role, references, a task that ended."""

from dataclasses import replace

import jax
import optax
from objectives import toy_lm as toy
from objectives.cases import PARAMS, START

from jaxforget.combiners import weighted_sum
from jaxforget.edits.material import Material
from jaxforget.engine.state import init_state
from jaxforget.objectives.rehearsal import top_logits
from jaxforget.strategies import make_step

NEW, OLD, MORE = toy.examples(1, 7), toy.examples(2, 7), toy.examples(3, 7)
BATCHES = {
    "train": toy.pack(NEW, 4, 3),
    "replay": toy.pack(OLD, 4, 3),
    "replay_again": toy.pack(MORE, 4, 3),
    "memory_0": toy.pack(OLD, 4, 3),
    "memory_1": toy.pack(MORE, 4, 3),
}
WEIGHTLESS = weighted_sum({"nll": 1.0})


def stored(role, params=START):
    reference = toy.reference(params, BATCHES[role])
    words, logits = top_logits(toy.score(params, BATCHES[role]), 3)
    return replace(reference, words=words, logits=logits)


def begin(strategy, optimizer, params=PARAMS):
    return init_state(params, strategy.transform(optimizer), WEIGHTLESS)


def inputs(strategy, task):
    batches = {role: BATCHES[role] for role in strategy.roles(task)}
    cached = {
        role: stored(role)
        for role, (source, _) in strategy.references(task).items()
        if source != "live" and role in batches
    }
    return batches, cached


def run(strategy, task=1, count=1, optimizer=None, state=None, accumulate=1, **more):
    optimizer = optimizer or optax.sgd(0.1)
    state = begin(strategy, optimizer) if state is None else state
    step = jax.jit(
        make_step(strategy, toy.score, optimizer, task=task, accumulate=accumulate, **more)
    )
    batches, cached = inputs(strategy, task)
    if more.get("phase") == "rehearsal":
        batches, cached = {"replay": BATCHES["replay"]}, {"replay": stored("replay")}
    metrics = {}
    for _ in range(count):
        state, metrics = step(state, {}, batches, cached)
    return state, metrics


def material(params=PARAMS):
    return Material(
        toy.score,
        params,
        {},
        params,
        lambda role, singly=False, epochs=1: iter([toy.pack(NEW, 7, 1)]),
        jax.random.key(0),
        lambda role: [],
    )
