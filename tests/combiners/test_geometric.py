"""geometric_disentangle as a combiner: its variants, its memory, its metrics, its messages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combiners.trees import conflicting, flat, like, same_bits, times, tree

from jaxforget.combiners import geometric_disentangle, weighted_sum
from jaxforget.combiners.vectors import cosine, norm
from jaxforget.engine.errors import UserError

FORGET = {"forget": 1.0}
BOTH = {"forget": 1.0, "retain": 0.5}


@partial(jax.jit, static_argnums=0)
def combine(combiner, gradients, state):
    return combiner.combine(gradients, state, {})


@partial(jax.jit, static_argnums=0)
def finish(combiner, delta, state):
    return combiner.finish(delta, state, {})


def start(combiner, gradients):
    return combiner.init(next(iter(gradients.values())))


def adam_like(direction, step=0.01):
    """Any update that is not parallel to the direction."""
    return jax.tree.map(lambda d: -step * (jnp.sign(d) + 0.1 * d), direction)


def test_no_covectors_is_the_weighted_sum_bit_for_bit_in_one_backward_pass():
    combiner = geometric_disentangle(BOTH, covectors=0)
    g = conflicting(0)
    assert combiner.weights == BOTH and combiner.finish is None
    expected = jax.jit(weighted_sum(BOTH).combine)(g, (), {})[0]
    assert same_bits(jax.jit(combiner.combine)(g, (), {})[0], expected)


@pytest.mark.parametrize("metric", ["identity", "second_moment"])
@pytest.mark.parametrize("sides", ["one", "both"])
def test_the_realised_update_has_no_product_with_the_protected_gradient(metric, sides):
    combiner = geometric_disentangle(FORGET, metric=metric, sides=sides, decay=0.9)
    g = conflicting(1, shared=2.0)
    state = start(combiner, g)
    for _ in range(3):
        direction, carried, cosines = combine(combiner, g, state)
        assert same_bits(direction, g["forget"])
        # an update that climbs the protected term
        delta = jax.tree.map(jnp.add, adam_like(direction), times(g["retain"], 0.01))
        moved, state, metrics = finish(combiner, delta, carried)
    assert state.current == ()
    r, before, after = flat(g["retain"]), flat(delta), flat(moved)
    size = np.linalg.norm(r) * np.linalg.norm(before)
    assert r @ before > 0.05 * size and abs(r @ after) <= 1e-6 * size
    assert float(metrics["raw_change_retain"]) == pytest.approx(r @ before, rel=1e-5)
    assert abs(float(metrics["predicted_change_retain"])) <= 1e-6 * size
    share = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert float(metrics["removed_share"]) == pytest.approx(share, rel=1e-4)
    assert float(metrics["binding"]) == 1
    f = flat(g["forget"])
    expected = f @ r / np.linalg.norm(f) / np.linalg.norm(r)
    assert float(cosines["cosine_forget_retain"]) == pytest.approx(expected, abs=1e-5)


def test_the_metric_is_the_bias_corrected_average_of_squares():
    decay, epsilon = 0.8, 1e-3
    combiner = geometric_disentangle(FORGET, decay=decay, epsilon=epsilon, sides="both")
    state, v = start(combiner, conflicting(0)), 0
    for step in range(1, 4):
        g = conflicting(step)
        _, carried, _ = combine(combiner, g, state)
        delta = adam_like(g["forget"])
        moved, state, _ = finish(combiner, delta, carried)
        f, r, d = flat(g["forget"]), flat(g["retain"]), flat(delta)
        v = decay * v + (1 - decay) * (f**2 + r**2)
        p = 1 / (np.sqrt(v / (1 - decay**step)) + epsilon)
        expected = d - p * r * (r @ d) / (r @ (p * r))
        np.testing.assert_allclose(flat(moved), expected, atol=2e-6 * np.abs(d).max())


@pytest.mark.parametrize("stage", ["update", "gradient"])
def test_entries_that_only_the_protected_gradient_touches_do_not_take_the_correction(stage):
    combiner = geometric_disentangle(FORGET, stage=stage, sides="both")
    g = conflicting(11, shared=2.0)
    g["forget"]["head"] = times(g["forget"]["head"], 0)
    direction, state, metrics = combine(combiner, g, start(combiner, g))
    before, after = g["forget"], direction
    if stage == "update":
        before = times(g["forget"], -0.01)
        after, state, metrics = finish(combiner, before, state)
    moved = np.abs(flat(after["layers"]) - flat(before["layers"])).max()
    assert np.abs(flat(after["head"])).max() <= 10 * moved
    assert 0.1 < float(metrics["removed_share"]) < 10


def test_an_update_that_helps_the_protected_term_passes_bit_for_bit():
    combiner = geometric_disentangle(BOTH)
    g = conflicting(2)
    _, carried, _ = combine(combiner, g, start(combiner, g))
    delta = times(g["retain"], -0.01)
    moved, _, metrics = finish(combiner, delta, carried)
    assert same_bits(moved, delta)
    assert float(metrics["binding"]) == 0 and float(metrics["removed_share"]) == 0
    assert float(metrics["predicted_change_retain"]) < 0


@pytest.mark.parametrize("stage", ["update", "gradient"])
def test_without_a_protected_gradient_nothing_changes(stage):
    combiner = geometric_disentangle(FORGET, stage=stage, covectors=3)
    g = conflicting(3)
    g["retain"] = times(g["retain"], 0)
    direction, state, metrics = combine(combiner, g, start(combiner, g))
    assert same_bits(direction, g["forget"])
    if stage == "update":
        delta = adam_like(direction)
        moved, state, metrics = finish(combiner, delta, state)
        assert same_bits(moved, delta)
    assert float(metrics["removed_share"]) == 0
    assert all(float(norm(slot)) == 0 for slot in state.memory)


@pytest.mark.parametrize("sides", ["one", "both"])
def test_in_the_gradient_stage_an_opposed_forget_gradient_makes_no_step(sides):
    combiner = geometric_disentangle(FORGET, stage="gradient", sides=sides)
    g = conflicting(4)
    g["forget"] = times(g["retain"], -3.0)
    direction, _, _ = combine(combiner, g, start(combiner, g))
    assert float(norm(direction)) <= 1e-5 * float(norm(g["forget"]))
    assert combiner.finish is None


def test_the_joint_step_adds_the_protected_gradient_after_the_projection():
    options = dict(stage="gradient", sides="both", metric="identity")
    g = conflicting(5)
    plain = geometric_disentangle(FORGET, **options)
    joint = geometric_disentangle(FORGET, repair=0.7, **options)
    a = combine(plain, g, start(plain, g))[0]
    b = combine(joint, g, start(joint, g))[0]
    expected = flat(a) + 0.7 * flat(g["retain"])
    np.testing.assert_allclose(flat(b), expected, rtol=1e-5, atol=1e-6)
    rest = flat(a) @ flat(g["retain"])
    assert abs(rest) <= 1e-6 * np.linalg.norm(flat(g["forget"])) * np.linalg.norm(flat(g["retain"]))


@pytest.mark.parametrize("stage", ["update", "gradient"])
def test_earlier_protected_gradients_are_remembered_and_respected(stage):
    combiner = geometric_disentangle(
        FORGET, covectors=3, stage=stage, sides="both", metric="identity", memory_dtype="float32"
    )
    state, seen = start(combiner, conflicting(0)), []
    for step in range(5):
        g = conflicting(10 + step)
        direction, state, metrics = combine(combiner, g, state)
        delta = adam_like(direction)
        if stage == "update":
            moved, state, metrics = finish(combiner, delta, state)
        else:
            moved, delta = direction, g["forget"]
        seen.append(g["retain"])
        for column in seen[-3:]:
            size = float(norm(column) * norm(delta))
            assert abs(flat(column) @ flat(moved)) <= 1e-6 * size
        assert float(metrics["binding"]) == min(step + 1, 3)
        assert 0 < float(metrics["uncovered_retain"]) <= 1
    assert float(cosine(state.memory[0], seen[-1])) > 0.999999
    assert float(cosine(state.memory[1], seen[-2])) > 0.999999


def test_several_protected_terms_are_all_respected():
    names = ("forget", "retain", "neighbor")
    combiner = geometric_disentangle(
        FORGET, protect=("retain", "neighbor"), covectors=2, sides="both"
    )
    g = conflicting(6, names=names)
    _, carried, cosines = combine(combiner, g, start(combiner, g))
    delta = adam_like(g["forget"])
    moved, _, metrics = finish(combiner, delta, carried)
    for name in names[1:]:
        size = float(norm(g[name]) * norm(delta))
        assert abs(flat(g[name]) @ flat(moved)) <= 1e-6 * size
        assert f"cosine_forget_{name}" in cosines and f"raw_change_{name}" in metrics


def test_leaves_outside_the_scope_pass_and_the_metric_tells():
    combiner = geometric_disentangle(FORGET, scope="layers/", covectors=2, sides="both")
    g = conflicting(7)
    state = start(combiner, g)
    assert set(state.second_moment) == {"layers"} and set(state.memory[0]) == {"layers"}
    _, carried, _ = combine(combiner, g, state)
    delta = adam_like(g["forget"])
    moved, _, metrics = finish(combiner, delta, carried)
    inside = [flat(t["layers"]) for t in (g["retain"], moved, delta)]
    assert abs(inside[0] @ inside[1]) <= 1e-6 * np.linalg.norm(inside[0]) * np.linalg.norm(
        inside[2]
    )
    for key in ("head", "scale"):
        assert same_bits(moved[key], delta[key])
    change = flat(g["retain"]) @ flat(moved)
    assert float(metrics["predicted_change_retain"]) == pytest.approx(change, rel=1e-4)
    assert abs(change) > 1e-3


def test_state_keeps_its_structure_and_dtypes_over_a_step():
    combiner = geometric_disentangle(BOTH, covectors=2)
    g = conflicting(8)
    before = start(combiner, g)
    _, carried, _ = combine(combiner, g, before)
    after = finish(combiner, adam_like(g["forget"]), carried)[1]
    kinds = [
        jax.tree.map(lambda x: (jnp.shape(x), x.dtype), state, is_leaf=None)
        for state in (before, after)
    ]
    assert kinds[0] == kinds[1]
    assert jax.tree.leaves(before.memory)[0].dtype == jnp.bfloat16
    lean = start(geometric_disentangle(BOTH, metric="identity"), g)
    assert len(jax.tree.leaves(lean)) == 1


@pytest.mark.parametrize("sides", ["one", "both"])
def test_sharded_leaves_give_the_update_of_one_device(sides):
    rng = np.random.default_rng(0)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    g = {
        name: {"w": jnp.asarray(rng.normal(size=(16, 8)) + 0.5, jnp.float32)}
        for name in ("forget", "retain")
    }
    combiner = geometric_disentangle(FORGET, covectors=2, sides=sides)

    @jax.jit
    def step(gradients):
        _, state, _ = combiner.combine(gradients, combiner.init(gradients["forget"]), {})
        return combiner.finish(times(gradients["forget"], 0.1), state, {})

    placed = jax.device_put(g, jax.NamedSharding(mesh, jax.P("fsdp")))
    alone, apart = step(g), step(placed)
    assert len(apart[0]["w"].sharding.device_set) == 8
    np.testing.assert_allclose(alone[0]["w"], apart[0]["w"], atol=1e-6)
    for name, value in alone[2].items():
        assert float(apart[2][name]) == pytest.approx(float(value), abs=1e-5), name


def test_low_precision_updates_keep_their_dtype():
    combiner = geometric_disentangle(FORGET, metric="identity")
    rng = np.random.default_rng(1)
    g = {name: tree(rng, dtype=jnp.bfloat16) for name in ("forget", "retain")}
    _, carried, _ = combine(combiner, g, start(combiner, g))
    moved, _, metrics = finish(combiner, times(g["retain"], 0.1), carried)
    assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype(jnp.bfloat16)}
    assert float(metrics["removed_share"]) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covectors": 10}, "covectors must be an integer from 0 to 9, got 10"),
        ({"protect": ()}, "protect must name at least one term"),
        ({"protect": "retain"}, "protect must be a list of names"),
        ({"protect": ("a", "b")}, "covectors is 1, but 2 terms are protected"),
        ({"stage": "delta"}, r"stage must be one of \['update', 'gradient'\], got 'delta'"),
        ({"keep": 1.0}, "keep and repair need stage 'gradient' and sides 'both'"),
        ({"repair": 1.0, "stage": "gradient"}, "keep and repair need"),
        ({"keep": -1.0, "stage": "gradient", "sides": "both"}, "keep must be a finite number >= 0"),
        ({"decay": 1.0}, "decay must be below 1"),
        ({"epsilon": 0.0}, "epsilon above 0"),
        ({"weights": {"forget": float("inf")}}, "the weight of 'forget'"),
        ({"memory_dtype": "int8"}, "memory_dtype must be one of"),
        ({"duplicate": 2.0}, "duplicate must be a finite number >= -1 and <= 1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UserError, match=f"geometric_disentangle: .*{message}|{message}"):
        geometric_disentangle(**{"weights": FORGET, **options})


def test_terms_and_scope_must_exist():
    g = conflicting(0)
    with pytest.raises(UserError, match=r"no terms: \['retain'\]"):
        combiner = geometric_disentangle(FORGET)
        combine(combiner, {"forget": g["forget"]}, start(combiner, g))
    with pytest.raises(UserError, match="scope 'layer9' matches no trained leaf"):
        geometric_disentangle(FORGET, scope="layer9").init(g["forget"])


def test_like_is_the_inverse_of_flat():
    some = tree(np.random.default_rng(0))
    assert same_bits(like(some, flat(some)), some)
