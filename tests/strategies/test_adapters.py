"""O-LoRA and RegLoRA: penalties equal their formulas, written out entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combiners.trees import flat, like, same_bits

from jaxforget.engine.errors import UserError
from jaxforget.strategies import as_transform, end_task, o_lora, reg_lora

N, IN, OUT, R = 2, 7, 10, 3
PATHS = ("layers/attn/q", "layers/mlp/up")


def factors(seed, b_scale=1.0):
    rng = np.random.default_rng(seed)

    def one(width):
        return {
            "lora_a": jnp.asarray(rng.normal(size=(N, IN, R)), jnp.float32),
            "lora_b": jnp.asarray(b_scale * rng.normal(size=(N, R, width)), jnp.float32),
        }

    return {"layers": {"attn": {"q": one(OUT)}, "mlp": {"up": one(OUT + 3)}}}


def at(params, path):
    node = params
    for name in path.split("/"):
        node = node[name]
    return {name: np.asarray(leaf, np.float64) for name, leaf in node.items()}


def slope_of(guard, state, params, name):
    """Central differences of the reported penalty along random directions, and the gradient's."""
    zero = jax.tree.map(jnp.zeros_like, params)
    call = jax.jit(guard.gradient)
    gradient = flat(call(zero, state, params)[0])
    for seed in range(4):
        direction = np.random.default_rng(seed).normal(size=gradient.size)
        values = [
            float(call(zero, state, like(params, flat(params) + s * 1e-3 * direction))[1][name])
            for s in (1, -1)
        ]
        slope = (values[0] - values[1]) / 2e-3
        assert slope == pytest.approx(gradient @ direction, rel=2e-2, abs=2e-2)


def test_o_lora_is_the_sum_of_absolute_overlaps_with_every_earlier_task():
    guard = o_lora(0.5, norm_weight=0.2, tasks=3)
    earlier, here = [factors(1), factors(2)], factors(3)
    state = guard.init(here)
    for params in earlier:
        state = guard.end_of_task(state, params, None)
    expected = 0.0
    for path in PATHS:
        own = at(here, path)
        for layer in range(N):
            for old in earlier:
                expected += (
                    0.5 * np.abs(at(old, path)["lora_a"][layer].T @ own["lora_a"][layer]).sum()
                )
            for name in ("lora_a", "lora_b"):
                expected += 0.2 * np.linalg.norm(own[name][layer])
    zero = jax.tree.map(jnp.zeros_like, here)
    _, metrics = guard.gradient(zero, state, here)
    assert float(metrics["o_lora_penalty"]) == pytest.approx(expected, rel=1e-5)
    slope_of(guard, state, here, "o_lora_penalty")


def test_o_lora_leaves_the_first_task_free_and_factors_b_without_norms():
    guard, here = o_lora(0.5), factors(3)
    state = guard.init(here)
    gradient, metrics = guard.gradient(here, state, here)
    assert same_bits(gradient, here) and float(metrics["o_lora_penalty"]) == 0
    state = guard.end_of_task(state, factors(1), None)
    gradient, _ = guard.gradient(here, state, here)
    for path in PATHS:
        np.testing.assert_array_equal(at(gradient, path)["lora_b"], at(here, path)["lora_b"])
        assert (at(gradient, path)["lora_a"] != at(here, path)["lora_a"]).any()


def test_a_strong_o_lora_makes_the_factors_orthogonal():
    guard, here = o_lora(1.0), factors(3)
    transform = as_transform(guard, optax.sgd(optax.linear_schedule(0.02, 0.0, 600)))
    state = end_task(guard, transform.init(here), factors(1))
    zero = jax.tree.map(jnp.zeros_like, here)

    def step(carry, _):
        params, state = carry
        update, state = transform.update(zero, state, params)
        return (optax.apply_updates(params, update), state), state.metrics["o_lora_penalty"]

    (params, _), values = jax.lax.scan(step, (here, state), length=600)
    assert values[-1] < 0.01 * values[0]
    a, old = at(params, PATHS[0])["lora_a"], at(factors(1), PATHS[0])["lora_a"]
    assert np.abs(np.einsum("nir,nis->nrs", old, a)).max() < 0.05 and np.abs(a).max() > 0.3


def test_reg_lora_holds_the_union_of_the_largest_changes():
    guard = reg_lora(40.0, share=0.1)
    earlier, here = [factors(1), factors(2)], factors(3)
    state = guard.init(here)
    for params in earlier:
        state = guard.end_of_task(state, params, None)
    total, held, matrices = 0.0, 0.0, 2 * N
    for path in PATHS:
        own = at(here, path)
        for layer in range(N):
            change = own["lora_a"][layer] @ own["lora_b"][layer]
            mask = np.zeros(change.shape, bool)
            for old in earlier:
                size = np.abs(at(old, path)["lora_a"][layer] @ at(old, path)["lora_b"][layer])
                count = int(0.1 * size.size)
                mask |= size >= np.sort(size.ravel())[-count]
            total += np.abs(change[mask]).mean() / matrices
            held += mask.mean() / matrices
    zero = jax.tree.map(jnp.zeros_like, here)
    _, metrics = guard.gradient(zero, state, here)
    assert float(metrics["reg_lora_penalty"]) == pytest.approx(40.0 * total, rel=1e-5)
    assert float(metrics["reg_lora_held"]) == pytest.approx(held, rel=1e-5)
    slope_of(guard, state, here, "reg_lora_penalty")


def test_an_entry_named_by_two_tasks_counts_once():
    guard, here = reg_lora(40.0, share=0.1), factors(3)
    once = guard.end_of_task(guard.init(here), factors(1), None)
    twice = guard.end_of_task(once, factors(1), None)
    assert same_bits(once, twice)
    assert {x.dtype for x in jax.tree.leaves(once)} == {jnp.dtype(jnp.uint8)}
    size = sum(x.size for x in jax.tree.leaves(once))
    assert size == N * IN * (-(-OUT // 8) + -(-(OUT + 3) // 8))


def test_fresh_adapters_feel_no_reg_lora():
    guard, here = reg_lora(40.0, share=0.1), factors(3, b_scale=0.0)
    zero = jax.tree.map(jnp.zeros_like, here)
    empty, metrics = guard.gradient(zero, guard.init(here), here)
    assert float(metrics["reg_lora_penalty"]) == 0 and not flat(empty).any()
    state = guard.end_of_task(guard.init(here), factors(1), None)
    gradient, metrics = guard.gradient(zero, state, here)
    assert float(metrics["reg_lora_penalty"]) == 0
    assert not flat(gradient).any()  # |x| has slope 0 at 0 here: nothing pushes away from it


def test_a_strong_reg_lora_silences_the_held_entries_and_frees_the_others():
    guard, here = reg_lora(200.0, share=0.05), factors(3)
    transform = as_transform(guard, optax.sgd(optax.linear_schedule(0.02, 0.0, 800)))
    state = end_task(guard, transform.init(here), factors(1))
    zero = jax.tree.map(jnp.zeros_like, here)

    def step(carry, _):
        params, state = carry
        update, state = transform.update(zero, state, params)
        return (optax.apply_updates(params, update), state), state.metrics["reg_lora_penalty"]

    (params, _), values = jax.lax.scan(step, (here, state), length=800)
    assert values[-1] < 0.02 * values[0]
    own = at(params, PATHS[0])
    assert np.abs(own["lora_a"] @ own["lora_b"]).max() > 0.5


@pytest.mark.parametrize(
    "fault, make",
    [
        ("weight", lambda: o_lora(-1.0)),
        ("tasks", lambda: o_lora(tasks=0)),
        ("share", lambda: reg_lora(share=0.0)),
        ("factors of adapters alone", lambda: o_lora().init({"layers": {"q": {"w": jnp.ones(3)}}})),
        ("configure lora", lambda: reg_lora().init({})),
    ],
)
def test_what_is_no_adapter_is_refused(fault, make):
    with pytest.raises(UserError, match=fault):
        make()
