"""OGD and GPM as guards: steps stay outside what earlier tasks span."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combiners.trees import flat, same_bits
from objectives import toy_lm as toy
from objectives.cases import PARAMS

from jaxforget.edits.material import Material
from jaxforget.engine.errors import UserError
from jaxforget.strategies import as_transform, end_task, gpm, gradient_inputs, ogd

OLD, NEW = toy.examples(1, 4), toy.examples(2, 6)
SINGLE = toy.pack(OLD, 4, 1)


def material(params=PARAMS, frozen=None):
    return Material(
        toy.score,
        params,
        frozen or {},
        params,
        lambda role, singly=False, epochs=1: iter([SINGLE]),
        jax.random.key(0),
        lambda role: [],
    )


def trained(guard, optimizer, state, params, count=4):
    transform = as_transform(guard, optimizer)
    batch = toy.pack(NEW, 3, 2)

    @jax.jit
    def step(params, state):
        def loss(p):
            scores = toy.score(p, batch)
            return -(scores.logp * scores.mask).sum()

        update, state = transform.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, update), state

    for _ in range(count):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("on", ["update", "gradient"])
def test_ogd_steps_are_orthogonal_to_the_gradients_of_old_examples(on):
    guard = ogd(8, per_task=3, on=on)
    optimizer = optax.adam(1e-2) if on == "update" else optax.sgd(1e-2)
    transform = as_transform(guard, optimizer)
    state = transform.init(PARAMS)
    free, _ = trained(guard, optimizer, state, PARAMS)
    plain, _ = trained(guard, optimizer, transform.init(PARAMS), PARAMS)
    assert same_bits(free, plain)
    measured = guard.measure(material())
    assert {leaf.shape[0] for leaf in jax.tree.leaves(measured)} == {3}
    state = end_task(guard, state, PARAMS, measured)
    held, state = trained(guard, optimizer, state, PARAMS)
    step = flat(held) - flat(PARAMS)
    assert np.linalg.norm(step) > 1e-3
    for example in range(3):
        old = flat(jax.tree.map(lambda leaf, k=example: leaf[k], measured))
        assert abs(old @ step) < 1e-5 * np.linalg.norm(old) * np.linalg.norm(step)
        assert abs(old @ (flat(free) - flat(PARAMS))) > 1e-3 * np.linalg.norm(old) * np.linalg.norm(
            step
        )
    assert float(state.metrics["ogd_basis"]) == 3 and 0 < float(state.metrics["ogd_removed_share"])


def test_ogd_keeps_old_losses_still_to_first_order():
    guard = ogd(8, per_task=4)
    start = toy.float64(PARAMS)
    state = end_task(
        guard, as_transform(guard, optax.sgd(1.0)).init(PARAMS), PARAMS, guard.measure(material())
    )
    for rate, bound in ((1e-2, None), (1e-3, 0.03)):
        held, _ = trained(guard, optax.sgd(rate), state, PARAMS, 1)
        drift = max(abs(toy.nll64(toy.float64(held), [e]) - toy.nll64(start, [e])) for e in OLD)
        if bound is None:
            coarse = drift
        else:
            assert drift < bound * coarse  # a tenth of the step, a hundredth of the drift


LAYERS = {"layers": {"up": {"w": (3, 6, 4)}}, "head": {"w": (4, 5), "b": (5,)}}


def stacked(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        LAYERS,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def low_rank(seed, *shape, rank=2):
    """Inputs `[..., in, samples]` that span `rank` directions."""
    rng = np.random.default_rng(seed)
    *lead, inner, samples = shape
    made = rng.normal(size=(*lead, inner, rank)) @ rng.normal(size=(*lead, rank, samples))
    return jnp.asarray(made, jnp.float32)


def test_gpm_leaves_outputs_for_old_inputs_as_they_are():
    guard = gpm(paths="/w$", room=0.7, threshold=1.0)
    optimizer, params = optax.adamw(1e-2), stacked(0)
    transform = as_transform(guard, optimizer)
    state = transform.init(params)
    inputs = {"layers/up/w": low_rank(1, 3, 6, 20), "head/w": low_rank(2, 4, 20)}
    state = end_task(guard, state, params, inputs)
    for basis in state.guard.bases.values():
        square = np.einsum("...ir,...is->...rs", basis, basis, dtype=np.float64)
        used = np.einsum("...rr->...r", square).round()
        np.testing.assert_allclose(square, used[..., None] * np.eye(square.shape[-1]), atol=1e-5)
        assert (used.sum(-1) == 2).all()
    before = params
    for seed in range(3):
        update, state = transform.update(stacked(seed + 5), state, params)
        params = optax.apply_updates(params, update)
    for path, x in inputs.items():
        group, *rest = path.split("/")
        old, new = before[group], params[group]
        for name in rest:
            old, new = old[name], new[name]
        gap = np.asarray(new, np.float64) - np.asarray(old, np.float64)
        shift = np.einsum("...io,...is->...so", gap, np.asarray(x, np.float64))
        assert np.abs(gap).max() > 1e-2 and np.abs(shift).max() < 1e-6 * np.abs(x).max()
    assert not same_bits(params["head"]["b"], before["head"]["b"])


def test_gpm_bases_grow_by_what_a_new_task_adds_and_stop_at_their_room():
    guard = gpm(paths="head/w", room=0.75, threshold=1.0)
    params = stacked(0)
    state = guard.init(params)
    first, second = low_rank(1, 4, 9, rank=1), low_rank(2, 4, 9)
    for inputs, used in ((first, 1), (first, 1), (second, 3), (low_rank(3, 4, 9, rank=4), 3)):
        state = guard.end_of_task(state, params, {"head/w": inputs})
        assert int((np.abs(state.bases["head/w"]).max(0) > 0).sum()) == used
    _, metrics = guard.update(params, state, params)
    assert float(metrics["gpm_used"]) == 1.0


def test_gradient_inputs_have_the_second_moment_of_the_examples_gradients():
    found = gradient_inputs(toy.score, PARAMS, [SINGLE], ["mix"], limit=3)["mix"]
    start, moment = toy.float64(PARAMS), np.zeros((3, 3))
    for example in OLD[:3]:
        gradient = toy.differences(lambda p, e=example: toy.nll64(p, [e]), start)["mix"]
        moment += gradient @ gradient.T / 3
    np.testing.assert_allclose(found @ found.T, moment, rtol=1e-3, atol=1e-5)


def test_gpm_measures_and_holds_what_old_gradients_are_made_of():
    guard = gpm(paths="^mix$", room=1.0, threshold=1.0)
    trained_leaves, frozen = {"mix": PARAMS["mix"]}, {k: PARAMS[k] for k in ("embed", "head")}
    measured = guard.measure(material(trained_leaves, frozen))
    # full rank inputs leave no room to move at all
    state = end_task(
        guard, as_transform(guard, optax.sgd(0.1)).init(trained_leaves), trained_leaves, measured
    )
    transform = as_transform(guard, optax.sgd(0.1))
    update, _ = transform.update({"mix": jnp.ones((3, 3))}, state, trained_leaves)
    assert np.abs(update["mix"]).max() < 1e-6


def test_what_has_no_basis_passes_bit_for_bit():
    guard = gpm(paths="layers/up")
    params = stacked(0)
    state = guard.init(params)
    update, _ = guard.update(params, state, params)
    assert same_bits(update["head"], params["head"])
    np.testing.assert_allclose(flat(update), flat(params), rtol=1e-6)


@pytest.mark.parametrize(
    "fault, make",
    [
        ("per_task", lambda: ogd(4, per_task=0)),
        ("rank", lambda: ogd(0)),
        ("room", lambda: gpm(room=0.0)),
        ("threshold", lambda: gpm(threshold=1.5)),
        ("match no trained leaf", lambda: gpm(paths="nothing").init(stacked(0))),
        ("no matrix", lambda: gpm(paths="head/b").init(stacked(0))),
        (
            "no inputs",
            lambda: gpm(paths="w$").end_of_task(gpm(paths="w$").init(stacked(0)), None, {}),
        ),
    ],
)
def test_what_cannot_be_projected_is_refused(fault, make):
    with pytest.raises(UserError, match=fault):
        make()
