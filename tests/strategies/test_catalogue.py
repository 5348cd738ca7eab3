"""The catalogue: every entry trains, configurations are checked, the table is complete."""

import jax
import numpy as np
import optax
import pytest
from combiners.trees import flat, same_bits
from marks import slow_but
from objectives import toy_lm as toy
from objectives.cases import PARAMS
from strategies.cases import begin, inputs, material

from jaxforget import strategies
from jaxforget.engine.errors import UserError
from jaxforget.strategies import (
    check_stream,
    evaluated_params,
    from_config,
    get,
    make_step,
    next_task,
)
from jaxforget.strategies import prepared as prepare

ADAPTED = ("o_lora", "reg_lora")


# of penalties, memories, teachers, averages, guards and projections one each
WALKED = {"ewc", "gem", "gpm", "derpp", "lwf", "ema", "k_fpf", "replay"}


@pytest.mark.parametrize(
    "name",
    slow_but(WALKED, (name for name in strategies.names() if name not in ADAPTED)),
)
def test_every_strategy_walks_through_three_tasks(name):
    options = {
        "ogd": {"rank": 6, "per_task": 2},
        "gpm": {"paths": "mix|head"},
        "fpf": {"modules": "head"},
        "k_fpf": {"modules": "head", "every": 1, "steps": 1, "share": 0.5},
    }
    strategy, optimizer = get(name, **options.get(name, {})), optax.adam(1e-2)
    check_stream(strategy, 3)
    state = prepare(strategy, begin(strategy, optimizer), {})
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    steps = {}  # equal terms, equal programs
    for task in range(3):
        key = tuple(strategy.active(task))
        step = make_step(strategy, toy.score, optimizer, task=task)
        step, metrics = steps.setdefault(key, jax.jit(step)), {}
        for _ in range(2):
            state, metrics = step(state, {}, *inputs(strategy, task))
        state = next_task(strategy, state, material(state.params), optimizer=optimizer)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes
        assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert int(state.step) == 6 and not int(state.skips.total)
    assert np.isfinite(flat(evaluated_params(strategy, state))).all()
    assert not same_bits(state.params, PARAMS)


@pytest.mark.parametrize("name", ADAPTED)
def test_strategies_for_adapters_say_so(name):
    strategy = get(name)
    assert strategy.fresh_adapters
    with pytest.raises(UserError, match="configure lora"):
        begin(strategy, optax.sgd(0.1))
    if name == "o_lora":
        check_stream(strategy, 9)
        with pytest.raises(UserError, match="room for 9 tasks"):
            check_stream(strategy, 10)


def test_several_strategies_join_their_terms_guards_and_limits():
    both = from_config([{"name": "derpp", "alpha": 0.3}, {"name": "lwf"}, {"name": "ewc"}, "ema"])
    assert both.name == "derpp + lwf + ewc + ema" and len(both.guards) == 2
    assert both.weights(1) == {"nll": 1.0, "dark": 0.3, "again": 0.5, "distil": 1.0}
    assert both.weights(0) == {"nll": 1.0}
    assert set(both.references(1)) == {"train", "replay"}
    for wrong, fault in (
        (["ewc", "ewc"], "different strategies"),
        ([], "at least one"),
        (["agem", "gem"], "only one of them can bring its combiner"),
        (["der", "derpp"], "have a term 'dark'"),
        (["joint", "cumulative"], "its data"),
        ([{"name": "replay", "new_weight": 0.5}, "fpf", "k_fpf"], "its rehearsal"),
    ):
        with pytest.raises(UserError, match=fault):
            from_config(wrong)
    with pytest.raises(UserError, match="keep one"):
        _ = from_config(["ema", "wise_ft"]).guard


@pytest.mark.parametrize(
    "config, fault",
    [
        ("ewcc", "no strategy 'ewcc'. Did you mean 'ewc'"),
        ({"weight": 1.0}, "needs a name"),
        (
            {"name": "ewc", "wight": 1.0},
            "strategy.wight: ewc has no such key. Did you mean 'weig",
        ),
        ({"name": "ewc", "weight": -1}, "strategy.weight: .*greater than or equal to 0"),
        ({"name": "si", "storage": "tiny"}, "strategy.storage"),
        ({"name": "lwf", "temperature": 0}, "strategy.temperature"),
        ({"name": "kappatune", "count": 3}, "give one of count, share and threshold"),
    ],
)
def test_wrong_configurations_say_what_is_allowed(config, fault):
    with pytest.raises(UserError, match=fault):
        from_config(config)


def test_the_table_has_a_row_for_every_strategy_with_what_it_needs():
    rows = {row["name"]: row for row in strategies.table()}
    assert list(rows) == strategies.names()
    assert all(all(row.values()) for row in rows.values())
    assert rows["derpp"]["needs"] == "replay, replay_again, replay of the stored model"
    assert rows["lwf"]["needs"] == "train of the previous model"
    assert rows["o_lora"]["needs"] == "adapters"
    assert rows["fpf"]["needs"] == "replay"
