"""Strategies as steps: terms, teachers, phases, and what happens between tasks."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from combiners.trees import flat, same_bits
from objectives import toy_lm as toy
from objectives.cases import PARAMS, close
from strategies.cases import (
    BATCHES,
    MORE,
    NEW,
    OLD,
    WEIGHTLESS,
    begin,
    inputs,
    material,
    run,
)

from jaxforget import strategies
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.mesh import MeshConfig, make_mesh, shardings
from jaxforget.engine.state import init_state
from jaxforget.loops import plain
from jaxforget.objectives import nll_objective
from jaxforget.objectives.rehearsal import distillation_part
from jaxforget.strategies import (
    Strategy,
    Term,
    check_stream,
    evaluated_params,
    from_config,
    get,
    make_step,
    next_task,
    together,
)
from jaxforget.strategies import prepared as prepare


def slope(p, role):
    some = {"train": NEW, "replay": OLD, "replay_again": MORE, "memory_0": OLD, "memory_1": MORE}
    return toy.differences(lambda q: toy.nll64(q, some[role]), toy.float64(p))


def stepped(direction, rate=0.1):
    return jax.tree.map(lambda p, d: p - rate * d, toy.float64(PARAMS), direction)


NAIVE = [
    get("naive"),
    get("derpp", alpha=0.0, beta=0.0),
    get("der", alpha=0.0),
    get("replay", weight=0.0),
    get("lwf", weight=0.0),
    get("ewc", weight=0.0),
    get("si", weight=0.0),
    together(get("mas", weight=0.0), get("derpp", alpha=0.0, beta=0.0)),
]


@pytest.mark.parametrize("strategy", NAIVE, ids=lambda s: s.name)
def test_weights_of_zero_are_naive_training_bit_for_bit(strategy):
    assert strategy.roles(1) == ("train",) and not strategy.references(1)
    optimizer = optax.adamw(1e-2)
    step = jax.jit(plain(toy.score, nll_objective().objective, WEIGHTLESS, optimizer))
    state = init_state(PARAMS, optimizer, WEIGHTLESS)
    for _ in range(3):
        state, metrics = step(state, {}, {"train": BATCHES["train"]}, {})
    mine, found = run(strategy, count=3, optimizer=optimizer)
    assert same_bits(mine.params, state.params)
    assert float(found["loss"]) == float(metrics["loss"])


def test_replay_adds_the_weighted_loss_of_the_buffer_from_the_second_task_on():
    strategy = get("replay", weight=0.3, new_weight=0.7)
    state, metrics = run(strategy)
    mine, old = slope(PARAMS, "train"), slope(PARAMS, "replay")
    expected = stepped(jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, mine, old))
    close(state.params, expected, 2e-5)
    start = toy.float64(PARAMS)
    loss = 0.7 * toy.nll64(start, NEW) + 0.3 * toy.nll64(start, OLD)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    first, _ = run(strategy, task=0)
    assert strategy.roles(0) == ("train",) and same_bits(first.params, run(get("naive"))[0].params)


@pytest.mark.parametrize("kept", ["hidden", "top", "target"])
def test_derpp_without_labels_is_der_and_labels_come_from_a_second_draw(kept):
    der, derpp = get("der", alpha=0.2, kept=kept), get("derpp", alpha=0.2, kept=kept, beta=0.0)
    assert same_bits(run(der)[0].params, run(derpp)[0].params)
    both = get("derpp", alpha=0.2, kept=kept, beta=0.5)
    assert both.roles(1) == ("train", "replay", "replay_again")
    labels = slope(PARAMS, "replay_again")
    more = jax.tree.map(lambda p, d: p - 0.05 * d, toy.float64(run(der)[0].params), labels)
    close(run(both)[0].params, more, 3e-5)
    assert both.references(1) == {
        "replay": ("stored", frozenset({"logp" if kept == "target" else kept}))
    }


def test_agem_never_climbs_the_buffer_and_equals_its_formula():
    strategy = get("agem")
    state, metrics = run(strategy)
    g, r = (flat(slope(PARAMS, role)) for role in ("train", "replay"))
    expected = g - min(g @ r, 0) / (r @ r) * r
    np.testing.assert_allclose(flat(state.params), flat(PARAMS) - 0.1 * expected, atol=2e-5)
    assert set(metrics) >= {"nll", "memory", "binding", "loss", "cosine_to_memory"}
    # a buffer that pulls the other way: conflict, and the step is orthogonal to its gradient
    opposed = {**BATCHES, "replay": replace(BATCHES["train"], mask=-BATCHES["train"].mask)}
    step = jax.jit(make_step(strategy, toy.score, optax.sgd(0.1), task=1))
    state = begin(strategy, optax.sgd(0.1))
    after, metrics = step(state, {}, {role: opposed[role] for role in strategy.roles(1)}, {})
    assert int(metrics["binding"]) == 1
    way = flat(after.params) - flat(PARAMS)
    assert abs(way @ g) <= 1e-4 * np.linalg.norm(g) ** 2 * 0.1


def test_gem_takes_one_memory_of_every_earlier_task():
    strategy = get("gem", margin=0.0, ridge=0.0)
    assert strategy.roles(0) == ("train",)
    assert strategy.roles(2) == ("train", "memory_0", "memory_1")
    state, _ = run(strategy, task=2)
    step = flat(PARAMS) - flat(state.params)
    for role in ("memory_0", "memory_1"):
        g = flat(slope(PARAMS, role))
        assert step @ g >= -1e-5 * np.linalg.norm(step) * np.linalg.norm(g)
    check_stream(strategy, 10)
    with pytest.raises(UserError, match="room for 10 tasks, the stream has 11"):
        check_stream(strategy, 11)


def test_a_live_teacher_is_the_cached_one_without_a_cache():
    optimizer = optax.adam(1e-2)
    live, cached = get("lwf", teacher="live"), get("lwf")
    state, _ = run(live, task=0, count=3, optimizer=optimizer)
    state = next_task(live, state, None, optimizer=optimizer)
    teacher = state.params
    after, _ = run(live, state=state, count=2, optimizer=optimizer)
    other, _ = run(cached, task=0, count=3, optimizer=optimizer)
    step = jax.jit(make_step(cached, toy.score, optimizer, task=1))
    reference = {"train": toy.reference(teacher, BATCHES["train"])}
    for _ in range(2):
        other, metrics = step(other, {}, {"train": BATCHES["train"]}, reference)
    close(after.params, other.params, 1e-6)
    assert float(metrics["distil"]) > 0
    assert cached.references(1) == {"train": ("previous", frozenset({"hidden"}))}
    assert live.references(1) == {"train": ("live", frozenset({"hidden"}))}
    held = get("lwf", start=True)
    assert "distil" in held.active(0) and "distil" not in cached.active(0)


def test_between_tasks_ewc_measures_and_holds_and_moments_start_anew_if_asked():
    strategy, optimizer = get("ewc", weight=5.0), optax.adam(1e-2)
    state, _ = run(strategy, task=0, count=4, optimizer=optimizer)
    kept = next_task(strategy, state, material(), optimizer=optimizer)
    expected = strategies.fisher(toy.score, state.params, [toy.pack(NEW, 7, 1)])
    close(kept.opt_state.guard.importance, expected, 1e-5)
    assert same_bits(kept.opt_state.optimizer, state.opt_state.optimizer)
    fresh = next_task(strategy, state, material(), optimizer=optimizer, optimizer_reset="per_task")
    assert same_bits(fresh.opt_state.guard, kept.opt_state.guard)
    assert same_bits(fresh.opt_state.optimizer, optimizer.init(PARAMS))
    after, metrics = run(strategy, state=kept, count=2, optimizer=optimizer)
    assert float(metrics["ewc_penalty"]) > 0
    with pytest.raises(UserError, match="needs what it measures"):
        next_task(strategy, state, None, optimizer=optimizer)


def test_a_mixture_that_is_carried_on_is_where_the_next_task_starts():
    strategy, optimizer = get("wise_ft", share=0.25, anchor="previous", carry=True), optax.sgd(0.1)
    state, _ = run(strategy, task=0, count=3, optimizer=optimizer)
    mixed = evaluated_params(strategy, state)
    np.testing.assert_allclose(
        flat(mixed), 0.75 * flat(PARAMS) + 0.25 * flat(state.params), rtol=1e-5
    )
    after = next_task(strategy, state, None, optimizer=optimizer)
    assert same_bits(after.params, mixed) and same_bits(evaluated_params(strategy, after), mixed)


def test_k_fpf_trains_freely_then_rehearses_with_some_modules_and_again():
    strategy = get("k_fpf", modules="head", every=3, steps=2)
    optimizer = optax.adam(1e-2)
    assert strategy.roles(0) == ("train", "replay")
    state, step = begin(strategy, optimizer), None
    step = jax.jit(make_step(strategy, toy.score, optimizer, task=0))
    reference = begin(get("naive"), optimizer)
    naive = jax.jit(make_step(get("naive"), toy.score, optimizer, task=0))
    batches, phases = inputs(strategy, 0)[0], []
    for number in range(10):
        before = state.params
        state, metrics = step(state, {}, batches, {})
        phases.append(int(metrics["rehearsing"]))
        if number < 3:
            reference, _ = naive(reference, {}, {"train": BATCHES["train"]}, {})
            assert same_bits(state.params, reference.params)
        if phases[-1]:
            assert same_bits(state.params["embed"], before["embed"])
            assert same_bits(state.params["mix"], before["mix"])
            assert float(metrics["nll"]) == 0 < float(metrics["rehearsal"])
        assert not same_bits(state.params["head"], before["head"])
    assert phases == [0, 0, 0, 1, 1] * 2


def test_fpf_rehearses_at_the_end_alone_and_the_stream_is_naive():
    strategy = get("fpf", modules="head", steps=5, match="logits", alpha=0.3)
    assert strategy.roles(1) == ("train",) and strategy.rehearsal.every is None
    optimizer = optax.adam(1e-2)
    state, _ = run(strategy, task=0, count=3, optimizer=optimizer)
    assert same_bits(
        state.params, run(get("naive"), task=0, count=3, optimizer=optimizer)[0].params
    )
    after, metrics = run(strategy, state=state, count=5, optimizer=optimizer, phase="rehearsal")
    assert same_bits(after.params["embed"], state.params["embed"])
    assert same_bits(after.params["mix"], state.params["mix"])
    assert float(metrics["dark"]) > 0
    start, end = (toy.nll64(toy.float64(s.params), OLD) for s in (state, after))
    assert end < start


def test_kappatune_is_prepared_before_the_first_step():
    strategy, optimizer = get("kappatune", share=None, count=1), optax.adam(1e-2)
    state = prepare(strategy, begin(strategy, optimizer), {})
    kappas = strategies.condition_numbers(PARAMS)
    best = min(kappas, key=lambda path: kappas[path])
    after, metrics = run(strategy, state=state, count=3, optimizer=optimizer)
    for name in PARAMS:
        assert same_bits(after.params[name], PARAMS[name]) == (name != best)
    assert 0 < float(metrics["selected_share"]) < 1


@pytest.mark.parametrize(
    "strategy",
    [
        get("agem"),
        get("derpp", kept="hidden"),
        get("lwf", teacher="live"),
        from_config(["replay", {"name": "ewc", "weight": 2.0}, "si"]),
        get("k_fpf", modules="head", every=1, steps=1),
    ],
    ids=lambda s: s.name,
)
def test_micro_batches_change_nothing(strategy):
    whole, parts = (run(strategy, count=2, accumulate=k)[0] for k in (1, 2))
    close(parts.params, whole.params, 3e-6)


def test_a_mesh_changes_nothing():
    strategy = from_config([{"name": "ewc", "weight": 2.0}, "si", "ema"])
    optimizer = optax.adam(1e-2)
    expected, _ = run(strategy, count=2, optimizer=optimizer)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        state = begin(strategy, optimizer)
        state = jax.device_put(state, shardings(state, mesh))
        found, _ = run(strategy, count=2, optimizer=optimizer, state=state)
    close(found.params, expected.params, 1e-6)


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    """Also across the end of a task, whose Fisher information is measured again."""
    choice = ["replay", {"name": "ewc", "weight": 2.0}, "si", {"name": "kappatune", "count": 2}]
    choice[3] |= {"share": None}
    strategy, optimizer = from_config(choice), optax.adam(1e-2)

    def task(state, number):
        return run(strategy, task=number, count=3, optimizer=optimizer, state=state)[0]

    state = task(prepare(strategy, begin(strategy, optimizer), {}), 0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.wait()
        restored = checkpoints.restore(jax.tree.map(np.zeros_like, begin(strategy, optimizer)))
    assert restored is not None and same_bits(restored.state, state)

    def rest(state):
        state = next_task(strategy, state, material(state.params), optimizer=optimizer)
        return task(state, 1)

    assert same_bits(rest(restored.state), rest(state))


def test_two_teachers_of_one_role_are_refused():
    part = distillation_part("train")
    terms = {"a": Term(part, 1.0, 0, "previous"), "b": Term(part, 1.0, 0, "live")}
    with pytest.raises(UserError, match="compared with two models"):
        Strategy("mine", terms).references(0)


def test_a_step_says_what_it_lacks():
    with pytest.raises(UserError, match="'replay' batch"):
        strategy = get("replay")
        step = make_step(strategy, toy.score, optax.sgd(0.1), task=1)
        step(begin(strategy, optax.sgd(0.1)), {}, {"train": BATCHES["train"]}, {})
    with pytest.raises(UserError, match="reference scores of 'train'"):
        strategy = get("lwf")
        step = make_step(strategy, toy.score, optax.sgd(0.1), task=1)
        step(begin(strategy, optax.sgd(0.1)), {}, {"train": BATCHES["train"]}, {})
