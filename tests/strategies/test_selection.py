"""KappaTune, FPF and what they measure: condition numbers, changes, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combiners.trees import flat, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.engine.errors import UserError
from jaxforget.strategies import (
    as_transform,
    condition_numbers,
    fpf,
    kappatune,
    lowest,
    module_changes,
    only,
)
from jaxforget.strategies.selection import masked_by

SHAPES = {
    "embed": {"w": (20, 6)},
    "final_norm": {"scale": (6,)},
    "layers": {
        "attn": {"q": {"w": (3, 6, 6), "b": (3, 6)}},
        "attn_norm": {"scale": (3, 6)},
        "mlp": {"up": {"w": (3, 6, 9)}},
    },
}


def params(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def with_condition(seed, kappa, rows, columns):
    rng = np.random.default_rng(seed)
    size = min(rows, columns)
    left = np.linalg.qr(rng.normal(size=(rows, size)))[0]
    right = np.linalg.qr(rng.normal(size=(columns, size)))[0]
    return left @ np.diag(np.geomspace(kappa, 1, size)) @ right.T


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), kappa=st.floats(1, 1e5), scale=st.floats(1e-3, 1e3))
def test_condition_numbers_know_no_scale_and_no_orientation(seed, kappa, scale):
    matrix = scale * with_condition(seed, kappa, 6, 4)
    found = condition_numbers({"a": matrix, "b": matrix.T, "c": matrix.reshape(6, 2, 2)})
    for name in "abc":
        assert found[name] == pytest.approx(kappa, rel=1e-6), name


def test_condition_numbers_take_layers_one_by_one_and_leave_vectors_out():
    tree = params()
    found = condition_numbers(tree, largest=16)
    assert set(found) == {"layers/attn/q/w", "layers/mlp/up/w"}
    for layer in range(3):
        s = np.linalg.svd(np.asarray(tree["layers"]["mlp"]["up"]["w"][layer], np.float64))[1]
        assert found["layers/mlp/up/w"][layer] == pytest.approx(s[0] / s[-1], rel=1e-9)
    assert "embed/w" in condition_numbers(tree)
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    assert condition_numbers({"w": orthogonal})["w"] == pytest.approx(1.0)
    assert condition_numbers({"w": np.ones((4, 4))})["w"] == pytest.approx(1e8)
    assert condition_numbers({"w": np.zeros((4, 4))})["w"] == np.inf


def test_the_lowest_numbers_are_chosen_by_count_share_or_threshold():
    numbers = {"b": np.array([3.0, 1.0, 2.0]), "a": np.float64(2.0)}
    for given_, chosen in (
        ({"count": 2}, ([False, True, False], True)),  # of the two 2s the first by path
        ({"share": 0.25}, ([False, True, False], False)),
        ({"share": 0.01}, ([False, True, False], False)),
        ({"threshold": 2.0}, ([False, True, True], True)),
        ({"count": 9}, ([True, True, True], True)),
    ):
        found = lowest(numbers, **given_)
        np.testing.assert_array_equal(found["b"], chosen[0])
        assert bool(found["a"]) == chosen[1]
    for wrong in ({}, {"count": 1, "share": 0.5}, {"share": 0.0}, {"count": 0}):
        with pytest.raises(UserError, match="lowest"):
            lowest(numbers, **wrong)


def trained(guard, start, frozen=None, count=3):
    transform = as_transform(guard, optax.adamw(1e-2, weight_decay=0.1))
    state, tree = transform.init(start), start
    if guard.prepare is not None:
        state = state._replace(guard=guard.prepare(state.guard, start, frozen or {}))
    for seed in range(count):
        gradient = jax.tree.map(
            lambda leaf, s=seed: jnp.asarray(
                np.random.default_rng(s).normal(size=leaf.shape), jnp.float32
            ),
            tree,
        )
        update, state = jax.jit(transform.update)(gradient, state, tree)
        tree = optax.apply_updates(tree, update)
    return tree, state


def test_kappatune_moves_the_matrices_with_the_lowest_condition_numbers_alone():
    start = params()
    kappas = condition_numbers(start)
    everything = sorted(
        (value, path, layer)
        for path, values in kappas.items()
        for layer, value in enumerate(np.atleast_1d(values))
    )
    chosen = {(path, layer) for _, path, layer in everything[:3]}
    after, state = trained(kappatune(share=None, count=3), start)
    moved = set()
    for path, before in flatten(start).items():
        later = flatten(after)[path]
        rows = range(before.shape[0]) if path.startswith("layers/") else [None]
        for row in rows:
            a, b = (x if row is None else x[row] for x in (before, later))
            if not same_bits(a, b):
                moved.add((path, row or 0))
                assert (np.asarray(a) != np.asarray(b)).all()
    assert moved == chosen
    sizes = sum(kappa_size(path) for path, _ in chosen)
    whole = sum(leaf.size for leaf in jax.tree.leaves(start))
    assert float(state.metrics["selected_share"]) == pytest.approx(sizes / whole)


def flatten(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def kappa_size(path):
    return {"layers/attn/q/w": 36, "layers/mlp/up/w": 54, "embed/w": 120}[path]


def test_kappatune_with_adapters_trains_those_of_the_chosen_matrices():
    base = params()
    del base["embed"]
    best = np.unravel_index(
        np.argmin([condition_numbers(base)[f"layers/{p}/w"] for p in ("attn/q", "mlp/up")]), (2, 3)
    )
    adapters = {
        "layers": {
            "attn": {"q": {"lora_a": jnp.ones((3, 6, 2)), "lora_b": jnp.zeros((3, 2, 6))}},
            "mlp": {"up": {"lora_a": jnp.ones((3, 6, 2)), "lora_b": jnp.zeros((3, 2, 9))}},
        }
    }
    after, _ = trained(kappatune(share=None, count=1), adapters, frozen=base)
    for which, path in enumerate(("attn/q", "mlp/up")):
        group, name = path.split("/")
        for factor in ("lora_a", "lora_b"):
            for layer in range(3):
                a = adapters["layers"][group][name][factor][layer]
                b = after["layers"][group][name][factor][layer]
                assert same_bits(a, b) == ((which, layer) != best)


def test_kappatune_refuses_a_choice_of_nothing():
    start = {"final_norm": params()["final_norm"]}
    guard = kappatune(count=1, share=None)
    frozen = {k: v for k, v in params().items() if k != "final_norm"}
    with pytest.raises(UserError, match="none of the matrices"):
        guard.prepare(guard.init(start), start, frozen)
    with pytest.raises(UserError, match="give one of"):
        kappatune(count=3)


def test_no_choice_lets_everything_move():
    start = params()
    free, _ = trained(as_none(), start)
    masked, _ = trained(only(), start)
    assert same_bits(free, masked)


def as_none():
    from jaxforget.strategies import NOTHING

    return NOTHING


def test_fpf_moves_its_modules_and_nothing_else():
    start = params()
    after, _ = trained(fpf("norm|embed"), start)
    for path, before in flatten(start).items():
        moves = "norm" in path or "embed" in path
        assert same_bits(before, flatten(after)[path]) != moves, path
    everything, _ = trained(fpf(""), start)
    assert same_bits(everything, trained(as_none(), start)[0])


def test_changes_are_mean_magnitudes_of_every_module_and_layer():
    before, after = params(0), params(1)
    found = module_changes(before, after)
    for path, old in flatten(before).items():
        gap = np.abs(np.asarray(flatten(after)[path], np.float64) - np.asarray(old, np.float64))
        expected = gap.reshape(3, -1).mean(1) if path.startswith("layers/") else gap.mean()
        np.testing.assert_allclose(found[path], expected, rtol=1e-5)


def test_fpf_chooses_what_changed_most_in_the_task_that_ended():
    start = params()
    guard = fpf("norm", share=0.3)
    state = guard.init(start)
    bent = jax.tree.map(jnp.array, start)
    bent["layers"]["mlp"]["up"]["w"] = bent["layers"]["mlp"]["up"]["w"].at[1].add(5.0)
    bent["embed"]["w"] = bent["embed"]["w"] + 3.0
    bent["layers"]["attn_norm"]["scale"] = bent["layers"]["attn_norm"]["scale"].at[2].add(4.0)
    bent["layers"]["attn"]["q"]["b"] = bent["layers"]["attn"]["q"]["b"].at[0].add(2.0)
    state = jax.jit(guard.end_of_task, static_argnums=2)(state, bent, None)
    count = sum(int(rows.sum()) for rows in state.chosen.values())
    assert count == round(0.3 * 14)
    expected = {"layers/mlp/up/w": [0, 1, 0], "embed/w": 1, "layers/attn_norm/scale": [0, 0, 1]}
    expected["layers/attn/q/b"] = [1, 0, 0]
    for path, rows in state.chosen.items():
        np.testing.assert_array_equal(
            rows, np.asarray(expected.get(path, np.zeros(rows.shape)), bool)
        )
    assert same_bits(state.before, bent)


def test_masked_entries_stay_bit_equal_even_minus_zero():
    chosen = {"w": jnp.asarray(False)}
    start = {"w": jnp.asarray([-0.0, 0.0, 1.0])}
    delta = masked_by(chosen, {"w": jnp.ones(3)})
    assert same_bits(optax.apply_updates(start, delta), start)
    assert flat(masked_by({"w": jnp.asarray(True)}, {"w": jnp.ones(3)})).sum() == 3


def test_modules_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="matches no trained leaf"):
        fpf("nothing").init(params())
    with pytest.raises(UserError, match="share"):
        fpf(share=0.0)
