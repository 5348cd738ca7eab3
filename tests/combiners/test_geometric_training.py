"""Geometric disentanglement inside the real training step, with AdamW, decay and clipping."""

import jax
import numpy as np
import pytest
from engine import toy

from jaxforget.combiners import (
    compose,
    geometric_disentangle,
    multi_step_sparse,
    path_mask,
    pcgrad,
    weighted_sum,
)
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.mesh import MeshConfig, make_mesh, put, replicated, shardings
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.state import init_state
from jaxforget.loops import plain

FORGET, GRADDIFF = {"forget": 1.0, "retain": 0.0}, {"forget": 1.0, "retain": 1.0}
BATCHES = {"forget": toy.batch(1), "retain": toy.batch(2)}
WARM, STEPS = 4, (8e-3, 4e-3, 2e-3, 1e-3)


def optimizer_of(learning_rate):
    config = OptimizerConfig(
        learning_rate=learning_rate, schedule="constant", weight_decay=0.1, clip_norm=0.5
    )
    return make_optimizer(config, 100)


def step_of(combiner):
    """(start, compiled step whose learning rate is an argument, so that one compilation does)."""

    @jax.jit
    def step(state, learning_rate):
        optimizer = optimizer_of(learning_rate)
        loop = plain(toy.score, toy.objective, combiner, optimizer)
        return loop(state, {}, BATCHES, {})

    return init_state(toy.params(), optimizer_of(1.0), combiner), step


def retain_loss(params):
    """Token-mean NLL of the retain batch, float64."""
    batch = BATCHES["retain"]
    embed, mix, head = (np.asarray(params[k]["w"], np.float64) for k in ("embed", "mix", "head"))
    logits = np.tanh(embed[batch.tokens] @ mix) @ head.T
    logits = logits - logits.max(axis=-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    picked = np.take_along_axis(logp, batch.targets[..., None], axis=-1)[..., 0]
    return -(picked * batch.mask).sum() / batch.mask.sum()


def changes(combiner):
    """Retain change and metrics of one step of every size, all after the same warm-up."""
    state, step = step_of(combiner)
    for _ in range(WARM):  # so that momentum, the second moment and the decay are all at work
        state, _ = step(state, 3e-2)
    before, found = retain_loss(state.params), []
    for size in STEPS:
        after, metrics = step(state, size)
        found.append((retain_loss(after.params) - before, metrics))
    return np.array([change for change, _ in found]), [metrics for _, metrics in found]


def slope(values):
    return np.polyfit(np.log(STEPS), np.log(np.abs(values)), 1)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sides": "both"},
        {"metric": "identity"},
        {"covectors": 4, "sides": "both", "memory_dtype": "float32"},
    ],
    ids=["default", "both", "identity", "memory"],
)
def test_a_realised_update_changes_the_retain_loss_to_second_order_only(options):
    change, metrics = changes(geometric_disentangle(FORGET, **options))
    assert all(float(m["binding"]) >= 1 for m in metrics)
    assert slope(change) >= 1.9
    # halving the step quarters the change
    np.testing.assert_allclose(change[:-1] / change[1:], 4.0, rtol=0.15)
    for m in metrics:
        assert float(m["raw_change_retain"]) > 0
        assert abs(float(m["predicted_change_retain"])) <= 1e-5 * float(m["raw_change_retain"])


@pytest.mark.parametrize(
    "combiner",
    [
        geometric_disentangle(FORGET, stage="gradient", sides="both", metric="identity"),
        geometric_disentangle(FORGET, stage="gradient", sides="both"),
        pcgrad({"forget": 1.0, "retain": 1e-3}),
        weighted_sum(FORGET),
    ],
    ids=["euclidean before adam", "whitened before adam", "pcgrad", "weighted sum"],
)
def test_projecting_before_the_optimizer_does_not(combiner):
    change, _ = changes(combiner)
    assert slope(change) < 1.5


def test_the_predicted_change_is_the_realised_one_to_first_order():
    change, metrics = changes(geometric_disentangle(GRADDIFF))
    predicted = np.array([float(m["predicted_change_retain"]) for m in metrics])
    if all(float(m["binding"]) == 0 for m in metrics):  # retain is lowered: nothing to remove
        assert (predicted < 0).all()
    gap = np.abs(change - predicted)
    assert np.polyfit(np.log(STEPS), np.log(gap), 1)[0] >= 1.9


@pytest.mark.parametrize("weights", [FORGET, GRADDIFF])
def test_forgetting_goes_on_under_the_projection(weights):
    kept, step = step_of(geometric_disentangle(weights))
    _, first = step(kept, 5e-3)
    for _ in range(20):
        kept, last = step(kept, 5e-3)
    assert float(last["forget"]) < float(first["forget"]) - 0.5
    free, step = step_of(weighted_sum(weights))
    for _ in range(20):
        free, _ = step(free, 5e-3)
    assert retain_loss(kept.params) < retain_loss(free.params) + 1e-6


def test_a_resumed_run_continues_bit_for_bit(tmp_path):
    combiner = compose(
        geometric_disentangle(FORGET, covectors=3),
        multi_step_sparse(0.5, period=2),
        path_mask("mix|head"),
    )
    start, step = step_of(combiner)
    mesh = make_mesh(MeshConfig(fsdp=8, data=1))
    placed = shardings(start, mesh)
    step = jax.jit(step, out_shardings=(placed, replicated(mesh)))
    state = put(start, placed)
    for _ in range(3):
        state, _ = step(state, 1e-2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.wait()
        resumed = checkpoints.restore(put(start, placed)).state
    for _ in range(3):
        state, resumed = step(state, 1e-2)[0], step(resumed, 1e-2)[0]
    assert jax.tree.structure(state) == jax.tree.structure(resumed)
    jax.tree.map(np.testing.assert_array_equal, state, resumed)


def dots(combiner):
    """Matrix products in the traced step and in the compiled one."""
    state, step = step_of(combiner)
    traced = str(jax.make_jaxpr(step)(state, 1e-3)).count("dot_general")
    compiled = step.lower(state, 1e-3).compile().as_text()
    return traced, compiled.count(" dot(") + compiled.count("__onednn$matmul")


def test_cost_is_one_forward_pass_and_one_pull_back_for_each_term():
    plain_sum, geometric = dots(weighted_sum(GRADDIFF)), dots(geometric_disentangle(GRADDIFF))
    # the toy scores 2 roles with 2 products each: 4 forward; backward 2 for each product
    forward, backward = 4, 8
    assert plain_sum[0] == forward + backward
    assert geometric[0] == forward + 2 * backward
    assert geometric[1] <= (forward + 2 * backward) / (forward + backward) * plain_sum[1]
    print(f"\nmatrix products, geometric / weighted sum: {geometric} / {plain_sum}")
