"""OFMU: gradients against float64 autodiff, its limits, and a problem with a known solution."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from objectives.cases import PARAMS, batches
from objectives.toy_lm import score

from jaxforget.combiners import weighted_sum
from jaxforget.engine.errors import UserError
from jaxforget.engine.state import init_state
from jaxforget.loops import OfmuSettings, ofmu, with_realised_changes
from jaxforget.loops.phi import Losses, _linear, outer_gradient, phi_gradient
from jaxforget.objectives import graddiff

SPEC, COMBINER = graddiff("nll"), weighted_sum({"forget": 1.0, "retain": 1.0})
ROLES = {role: batch for role, batch in batches().items() if role in SPEC.needs.roles}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def network():
    """Two losses of a small two-layer net, float64."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 6, 2))
    params = {"a": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=(4, 2)))}

    def loss(which):
        def value(p):
            out = jnp.tanh(jnp.asarray(x[which]) @ p["a"]) @ p["b"]
            return jnp.square(out - jnp.asarray(y[which])).mean()

        return value

    return Losses(loss(0), loss(1)), params


def phi(losses, beta, similarity="plain"):
    """Phi itself, to be differentiated by plain autodiff."""

    def value(p):
        f, r = jax.grad(losses.forget)(p), jax.grad(losses.retain)(p)
        cosine = optax.tree.vdot(f, r) / (optax.tree.norm(f) * optax.tree.norm(r))
        shaped = {"plain": cosine, "squared": cosine**2, "absolute": jnp.abs(cosine)}[similarity]
        return losses.forget(p) - beta * shaped

    return value


def relative(a, b):
    gap = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
    return float(gap / optax.tree.norm(b))


@pytest.mark.parametrize("similarity", ["plain", "squared", "absolute"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
def test_the_inner_gradient_is_that_of_phi(float64, beta, similarity):
    losses, params = network()
    settings = OfmuSettings(beta=beta, similarity=similarity)
    ours, found = jax.jit(lambda p: phi_gradient(losses, p, settings))(params)
    expected = jax.grad(phi(losses, beta, similarity))(params)
    assert relative(ours, expected) < 1e-10
    rough = replace(settings, inner="finite_difference", finite_step=1e-6)
    assert relative(phi_gradient(losses, params, rough)[0], expected) < 1e-4
    np.testing.assert_allclose(found.forget, -losses.forget(params))
    f, r = jax.grad(losses.forget)(params), jax.grad(losses.retain)(params)
    cosine = optax.tree.vdot(f, r) / (optax.tree.norm(f) * optax.tree.norm(r))
    np.testing.assert_allclose(found.similarity, cosine)


@pytest.mark.parametrize(("differences", "tolerance"), [(None, 1e-10), (1e-6, 1e-4)])
def test_products_with_a_hessian_are_symmetric_and_those_of_the_dense_matrix(
    float64, differences, tolerance
):
    losses, params = network()
    flat, back = ravel_pytree(params)
    dense = jax.hessian(lambda x: losses.forget(back(x)))(flat)
    u, v = np.random.default_rng(0).normal(size=(2, flat.size))
    _, push = _linear(losses.forget, params, differences)
    left, right = (np.asarray(ravel_pytree(push(back(jnp.asarray(x))))[0]) for x in (u, v))
    scale = np.linalg.norm(dense) * np.linalg.norm(u)
    np.testing.assert_allclose(left, dense @ u, atol=tolerance * scale)
    np.testing.assert_allclose(v @ left, u @ right, atol=tolerance * scale * np.linalg.norm(v))


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_outer_gradient_is_that_of_the_penalised_retain_loss(float64, beta):
    losses, params = network()

    def penalised(p):
        return losses.retain(p) + 0.7 * optax.tree.norm(jax.grad(phi(losses, beta))(p)) ** 2

    expected = jax.grad(penalised)(params)
    settings = OfmuSettings(beta=beta, rho=1.0)
    ours, *_ = jax.jit(lambda p: outer_gradient(losses, p, jnp.float64(0.7), settings))(params)
    assert relative(ours, expected) < 1e-8
    rough = replace(settings, outer="finite_difference", finite_step=1e-6)
    ours, *_ = outer_gradient(losses, params, jnp.float64(0.7), rough)
    assert relative(ours, expected) < 1e-4


def test_scaling_the_forget_loss_leaves_the_similarity_alone(float64):
    losses, params = network()
    scaled = losses._replace(forget=lambda p: 5.0 * losses.forget(p))
    one, other = (
        phi_gradient(each, params, OfmuSettings(beta=1.0))[1].similarity
        for each in (losses, scaled)
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)


def run(settings, steps, optimizer=None, params=PARAMS):
    optimizer = optimizer or optax.sgd(0.05)
    loop = ofmu(settings)
    step = jax.jit(loop.make(score, SPEC.objective, COMBINER, optimizer))
    state = init_state(params, optimizer, COMBINER, loop_state=loop.init(params, optimizer))
    states, rows = [state], []
    for _ in range(steps):
        state, metrics = step(state, {}, ROLES, {})
        states.append(state)
        rows.append(jax.device_get(metrics))
    return states, rows


def moved(term, params, rate=0.05):
    """One SGD step on a term of GradDiff."""

    def loss(p):
        return SPEC.objective(score, p, ROLES, {})[0][term]

    return jax.tree.map(lambda p, g: p - rate * g, params, jax.jit(jax.grad(loss))(params))


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_without_inner_steps_and_penalty_it_is_fine_tuning_on_the_retain_set():
    states, rows = run(OfmuSettings(inner_steps=0, rho=0.0), 2)
    close(states[1].params, moved("retain", PARAMS))
    close(states[2].params, moved("retain", states[1].params))
    assert all(row["outer"] == 1 for row in rows)


@pytest.mark.parametrize("reading", ["A", "B", "C"])
def test_without_beta_and_rho_it_ascends_and_then_retains(reading):
    states, rows = run(OfmuSettings(beta=0.0, inner_steps=2, reading=reading), 3)
    first, second = moved("forget", PARAMS), moved("forget", states[1].params)
    close(states[1].params, first)
    close(states[2].params, second)
    assert [row["outer"] for row in rows] == [0, 0, 1]
    at = PARAMS if reading == "B" else states[2].params
    start = states[2].params if reading == "A" else PARAMS
    step = jax.tree.map(jnp.subtract, moved("retain", at), at)
    close(states[3].params, jax.tree.map(jnp.add, start, step))


def test_the_inner_step_of_a_model_is_the_gradient_of_phi():
    states, rows = run(OfmuSettings(beta=0.5, inner_steps=1), 1)

    def loss(name, sign):
        return lambda p: sign * SPEC.objective(score, p, ROLES, {})[0][name]

    losses = Losses(loss("forget", -1.0), loss("retain", 1.0))
    expected = jax.grad(phi(losses, 0.5))(PARAMS)
    taken = jax.tree.map(lambda a, b: (a - b) / 0.05, states[1].params, PARAMS)
    assert relative(taken, expected) < 1e-3
    np.testing.assert_allclose(rows[0]["stationarity"], optax.tree.norm(expected), rtol=1e-4)


def test_rho_grows_after_outer_steps_alone_and_directions_can_be_of_length_one():
    settings = OfmuSettings(rho=0.01, growth=2.0, inner_steps=1, normalise=True)
    states, _ = run(settings, 6, optax.sgd(0.1))
    assert [round(float(s.loop_state.rho) / 0.01) for s in states] == [1, 1, 2, 2, 4, 4, 8]
    for before, after in zip(states[:-1], states[1:], strict=True):
        change = jax.tree.map(jnp.subtract, after.params, before.params)
        np.testing.assert_allclose(optax.tree.norm(change), 0.1, rtol=1e-4)


def test_both_optimizers_follow_the_schedule_of_the_run():
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    states, _ = run(OfmuSettings(beta=0.0, inner_steps=1, normalise=True), 6, optax.sgd(schedule))
    for number, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        change = jax.tree.map(jnp.subtract, after.params, before.params)
        np.testing.assert_allclose(optax.tree.norm(change), 0.1 - 0.01 * number, rtol=1e-4)


def test_inner_and_outer_steps_keep_their_own_moments():
    states, _ = run(OfmuSettings(inner_steps=1), 2, optax.adam(0.01))
    outer, inner = states[2].opt_state[0], states[2].loop_state.inner_opt[0]
    assert int(outer.count) == int(inner.count) == 1
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, outer.mu, inner.mu))) > 0


def test_it_converges_to_the_solution_of_a_bilevel_problem():
    """Of all maxima a = b + 1 of Phi the one nearest to (3, 0), where L_r is least: (2, 1)."""
    losses = Losses(
        forget=lambda p: -0.5 * jnp.square(p["a"] - p["b"] - 1.0),
        retain=lambda p: 0.5 * jnp.square(p["a"] - 3.0) + 0.5 * jnp.square(p["b"]),
    )
    settings = OfmuSettings(beta=0.0, rho=0.05)
    params = {"a": jnp.float32(0.0), "b": jnp.float32(0.0)}

    def outer(number, p):
        rho = jnp.minimum(0.05 * 1.01**number, 50.0)
        g, *_ = outer_gradient(losses, p, rho, settings)
        return jax.tree.map(lambda x, d: x - 0.1 / (1 + 2 * rho) * d, p, g)

    found = jax.jit(lambda p: jax.lax.fori_loop(0, 9000, outer, p))(params)
    np.testing.assert_allclose([found["a"], found["b"]], [2.0, 1.0], atol=0.01)


@pytest.mark.parametrize(
    ("settings", "exact"),
    [
        ({}, True),
        ({"inner": "finite_difference"}, False),
        ({"inner": "finite_difference", "rho": 0.1}, True),
        ({"beta": 0.0}, False),
        ({"beta": 0.0, "rho": 0.1}, True),
        ({"beta": 0.0, "rho": 0.1, "outer": "finite_difference"}, False),
    ],
)
def test_it_says_whether_it_takes_exact_products_with_hessians(settings, exact):
    loop = ofmu(OfmuSettings(**settings))
    assert loop.second_order == with_realised_changes(loop).second_order == exact


def test_impossible_settings_are_refused():
    for wrong in ({"beta": -1.0}, {"growth": 0.5}, {"inner_steps": -1}, {"finite_step": 0.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            OfmuSettings(**wrong)
    with pytest.raises(UserError, match="accumulate must be 1"):
        ofmu().make(score, SPEC.objective, COMBINER, optax.sgd(0.1), accumulate=2)
