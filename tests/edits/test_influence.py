"""Influence approximation: float64 gradients and steps, limits, double backward."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from engine import toy as engine_toy
from objectives import toy_lm as toy

import jaxforget as jf
from jaxforget.data import fictitious
from jaxforget.edits import (
    gradient_norms,
    gradient_restriction,
    influence_approximation,
    mean_gradient,
)
from jaxforget.edits.influence import penalised
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import read_metrics
from jaxforget.objectives import nll_objective

SOME, PARAMS = toy.examples(1, 7), toy.params(0)


def close(ours, theirs, rtol=2e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


def slope(some):
    return toy.differences(lambda p: toy.nll64(p, some), toy.float64(PARAMS))


def drawn(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.float32(scale * rng.normal(size=x.shape)), PARAMS)


def test_the_gradient_is_of_the_mean_over_all_tokens_however_they_are_divided():
    want = slope(SOME)
    uneven = [toy.pack(SOME[:1], 2, 3, 8), toy.pack(SOME[1:], 2, 3, 8)]
    close(mean_gradient(toy.score, PARAMS, uneven), want)
    close(mean_gradient(toy.score, PARAMS, [toy.pack(SOME, 4, 2)]), want)
    halves = [mean_gradient(toy.score, PARAMS, [toy.pack(p, 3, 3)]) for p in (SOME[:1], SOME[1:])]
    naive = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    assert np.abs(np.asarray(naive["head"]) - want["head"]).max() > 1e-3


def test_the_gradient_is_float32_for_narrow_parameters():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    got = mean_gradient(toy.score, narrow, [toy.pack(SOME, 4, 2)])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    close(got, slope(SOME), rtol=0.1, atol=0.02)


def test_a_set_without_targets_is_refused():
    with pytest.raises(UserError, match="no labelled target"):
        mean_gradient(toy.score, PARAMS, [])
    with pytest.raises(UserError, match="no labelled target"):
        mean_gradient(toy.score, PARAMS, [toy.pack([], 2, 1)])


def test_the_step_descends_on_retain_and_ascends_on_forget():
    forget, retain = drawn(1), drawn(2)
    got = influence_approximation(PARAMS, forget, retain, optax.sgd(0.1))
    want = jax.tree.map(
        lambda p, f, r: np.float64(p) - 0.1 * (np.float64(r) - np.float64(f)),
        PARAMS,
        forget,
        retain,
    )
    close(got, want, 1e-5)


def test_an_empty_forget_set_is_a_fine_tuning_step():
    nothing, retain = jax.tree.map(jnp.zeros_like, PARAMS), drawn(2)
    optimizer = optax.adam(1e-3)
    update, _ = optimizer.update(retain, optimizer.init(PARAMS), PARAMS)
    close(
        influence_approximation(PARAMS, nothing, retain, optimizer),
        optax.apply_updates(PARAMS, update),
        1e-6,
    )


def test_the_first_adam_step_is_the_sign_and_ignores_the_scale_but_sgd_does_not():
    forget, retain = drawn(1), drawn(2)
    small = [jax.tree.map(lambda x: x * 1e-3, tree) for tree in (forget, retain)]
    sign = jax.tree.map(
        lambda p, f, r: np.float64(p) - 1e-3 * np.sign(np.float64(r) - np.float64(f)),
        PARAMS,
        forget,
        retain,
    )
    adam = optax.adam(1e-3)
    close(influence_approximation(PARAMS, forget, retain, adam), sign, 0, 2e-7)
    close(influence_approximation(PARAMS, *small, adam), sign, 0, 5e-6)
    one = influence_approximation(PARAMS, forget, retain, optax.sgd(0.1))
    other = influence_approximation(PARAMS, *small, optax.sgd(0.1))
    assert np.abs(np.asarray(one["mix"] - other["mix"])).max() > 1e-2


def test_the_dtype_stays_and_other_trees_are_refused():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    got = influence_approximation(narrow, drawn(1), drawn(2), optax.adam(0.1))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(got))
    with pytest.raises(UserError, match="gradient_retain and the parameters differ"):
        influence_approximation(PARAMS, drawn(1), {"mix": PARAMS["mix"]}, optax.sgd(0.1))


# --- the penalty on gradient norms ---

NET = {"bias": (3,), "layers/in": (2, 3, 3), "out": (3, 1)}


def net(seed):
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=shape) for name, shape in NET.items()}
    return params, rng.normal(size=(5, 3)), rng.normal(size=(5, 1))


def net_loss(params, x, y):
    for layer in range(2):
        x = jnp.tanh(x @ params["layers/in"][layer])
    return jnp.square((x + params["bias"][None]) @ params["out"] - y).mean()


def net_gradient64(params, x, y):
    """Loss and gradient by hand."""
    first = np.tanh(x @ params["layers/in"][0])
    second = np.tanh(first @ params["layers/in"][1])
    top = second + params["bias"]
    gap = top @ params["out"] - y
    back = 2 / len(x) * gap
    down = back @ params["out"].T
    inner = down * (1 - second**2)
    outer = inner @ params["layers/in"][1].T * (1 - first**2)
    gradient = {
        "bias": down.sum(0),
        "layers/in": np.stack([x.T @ outer, first.T @ inner]),
        "out": top.T @ back,
    }
    return np.mean(gap**2), gradient


def penalised64(params, x, y, scale):
    loss, gradient = net_gradient64(params, x, y)
    tensors = [gradient["bias"], *gradient["layers/in"], gradient["out"]]
    return loss + scale * sum(np.sqrt((g**2).sum() + 1e-12) for g in tensors)


@pytest.mark.parametrize("seed", range(3))
def test_the_penalised_loss_and_its_gradient_match_float64(seed):
    params, x, y = net(seed)
    with jax.enable_x64(True):
        loss = gradient_restriction(net_loss, scale=0.3)
        value, gradient = jax.jit(jax.value_and_grad(loss))(params, x, y)
        np.testing.assert_allclose(value, penalised64(params, x, y, 0.3), rtol=1e-12)
    want = toy.differences(lambda p: penalised64(p, x, y, 0.3), params)
    close(gradient, want, 1e-6, 1e-8)


def test_the_penalty_differentiates_through_the_fused_cross_entropy():
    batch = toy.pack(SOME, 4, 2)

    def fused(p):
        scores = toy.score(p, batch)
        return -(scores.logp * scores.mask).sum() / scores.mask.sum()

    def plain(p):
        hidden = jnp.tanh(p["embed"][batch.tokens] @ p["mix"])
        logp = jax.nn.log_softmax(hidden @ p["head"].T)
        logp = jnp.take_along_axis(logp, batch.targets[..., None], axis=-1)[..., 0]
        return -(logp * batch.mask).sum() / batch.mask.sum()

    ours, theirs = (
        jax.value_and_grad(gradient_restriction(loss, scale=0.5))(PARAMS) for loss in (fused, plain)
    )
    close(ours, theirs, 1e-4, 1e-5)
    unpenalised = jax.grad(plain)(PARAMS)
    assert np.abs(np.asarray(ours[1]["mix"] - unpenalised["mix"])).max() > 1e-2


def test_layers_are_tensors_of_their_own_and_scale_zero_is_the_loss_itself():
    gradient = {"layers": {"w": jnp.float32([[3.0, 4.0], [5.0, 12.0]])}, "b": jnp.float32([8, 6])}
    np.testing.assert_allclose(gradient_norms(gradient), 5 + 13 + 10, rtol=1e-6)
    np.testing.assert_allclose(
        gradient_norms(gradient, stacked="^none$"), np.sqrt(194) + 10, rtol=1e-6
    )
    assert gradient_restriction(net_loss, scale=0) is net_loss
    with pytest.raises(UserError, match="scale must be a finite number >= 0"):
        gradient_restriction(net_loss, scale=-0.1)


def test_at_a_stationary_point_the_penalty_has_gradient_zero_not_nan():
    def flat(p):
        return (p["w"] ** 4).sum()

    value, gradient = jax.value_and_grad(gradient_restriction(flat))({"w": jnp.zeros(3)})
    np.testing.assert_allclose(value, 0.005 * 1e-6, rtol=1e-5)
    np.testing.assert_array_equal(gradient["w"], 0.0)


def test_the_penalty_of_an_objective_is_that_of_its_gradient():
    spec = penalised(nll_objective(), "nll")
    assert spec.terms == ("nll", "penalty")
    batches = {"train": engine_toy.batch(1)}

    def plain(params):
        return nll_objective().objective(engine_toy.score, params, batches, {})[0]["nll"]

    start = engine_toy.params()
    terms, _ = spec.objective(engine_toy.score, start, batches, {})
    gradient = {k: np.float64(v["w"]) for k, v in jax.grad(plain)(start).items()}
    expected = sum(np.sqrt((each**2).sum()) for each in gradient.values())
    np.testing.assert_allclose(terms["penalty"], expected, rtol=1e-5)
    np.testing.assert_array_equal(terms["nll"], plain(start))


@pytest.mark.slow
def test_finetuning_with_the_penalty_ends_where_gradients_are_smaller(tmp_path):
    fictitious.write(tmp_path, forget_people=1, retain_people=3, known_people=4, facts=2)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "hidden_size": 16, "head_dim": 8, "intermediate_size": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def taught(name, **more):
        settings = {
            "model": str(tmp_path),
            "initialise": "random",
            "data": str(tmp_path / "train_full.jsonl"),
            "run_dir": str(tmp_path / name),
            "max_length": 64,
            "train": {"steps": 6, "batch_size": 4, "log_every": 1, **more.pop("train", {})},
            "optimizer": {"learning_rate": 3e-3},
            **more,
        }
        jf.finetune(settings)
        return read_metrics(tmp_path / name / "metrics.jsonl")

    def losses(rows):
        return [row["nll"] for row in rows]

    plain, none = taught("plain"), taught("none", gradient_penalty=0.0)
    assert losses(plain) == losses(none) and "penalty" not in none[0]
    held = taught("held", gradient_penalty=0.5)
    assert held[-1]["penalty"] < held[0]["penalty"] and losses(held) != losses(plain)
    with pytest.raises(UserError, match="gradient_penalty: needs the whole batch"):
        taught("apart", gradient_penalty=0.5, train={"accumulate": 2})
