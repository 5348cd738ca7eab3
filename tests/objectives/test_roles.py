"""Scoring roles together gives each role what it would get alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from objectives import toy_lm as toy

from jaxforget.engine.errors import UserError
from jaxforget.engine.step import with_totals
from jaxforget.objectives import score_roles

PARAMS = toy.params(0)


def three_roles(bounds=("bound", "bound", "bound"), rows=(4, 8, 6)):
    slots, counts = (3, 6, 1), (7, 13, 5)
    return with_totals(
        {
            role: toy.pack(toy.examples(i, counts[i]), rows[i], slots[i], bounds[i])
            for i, role in enumerate(("forget", "retain", "general"))
        }
    )


@partial(jax.jit, static_argnums=1)
def scored(batches, together):
    return score_roles(toy.score, PARAMS, batches, tuple(batches), together=together)


@pytest.mark.parametrize(
    "bounds", [("bound",) * 3, (None,) * 3, ("bound", None, "bound"), (4, 10, 10)]
)
@pytest.mark.parametrize("rows", [(4, 8, 6), (7, 13, 5)])
def test_together_equals_apart_in_every_field(bounds, rows):
    batches = three_roles(bounds, rows)
    roles = tuple(batches)
    together, apart = (scored(batches, together) for together in (True, False))
    assert set(together) == set(apart) == set(roles)
    for role in roles:
        ours, alone = together[role], apart[role]
        assert jax.tree.structure(ours) == jax.tree.structure(alone)
        counted = np.asarray(alone.mask) != 0
        np.testing.assert_array_equal(ours.mask, alone.mask)
        np.testing.assert_array_equal(ours.example, alone.example)
        np.testing.assert_array_equal(ours.segments * ours.mask, alone.segments * alone.mask)
        np.testing.assert_allclose(ours.logp, alone.logp, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.hidden[counted], alone.hidden[counted], rtol=1e-6)
        assert ours.hidden.shape == alone.hidden.shape
        for mine, theirs in zip(
            jax.tree.leaves(ours.stats), jax.tree.leaves(alone.stats), strict=True
        ):
            np.testing.assert_allclose(mine[counted], theirs[counted], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(ours.totals.tokens, alone.totals.tokens)
        np.testing.assert_array_equal(ours.totals.examples, alone.totals.examples)


def test_one_forward_pass_is_enough():
    calls = []

    def counting(params, batch):
        calls.append(batch.tokens.shape)
        return toy.score(params, batch)

    batches = three_roles()
    jax.eval_shape(lambda b: score_roles(counting, PARAMS, b, tuple(b)), batches)
    assert calls == [(18, toy.LENGTH)]


def test_together_and_apart_have_the_same_gradient():
    batches = three_roles()
    weights = {"forget": 1.0, "retain": -2.0, "general": 0.5}

    def total(params, together):
        scores = score_roles(toy.score, params, batches, tuple(batches), together=together)
        return sum(weights[role] * (s.logp**2 * s.mask).sum() for role, s in scores.items())

    step = jax.jit(jax.grad(total), static_argnums=1)
    ours, alone = (step(PARAMS, together) for together in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), ours, alone)


def test_interleaved_rows_never_leave_their_device():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    batches = three_roles(rows=(4, 8, 12))
    rows = NamedSharding(mesh, P("data"))
    whole = NamedSharding(mesh, P())
    placed = jax.tree.map(lambda x: jax.device_put(x, rows if x.ndim else whole), batches)

    def logps(params, batches):
        scores = score_roles(toy.score, params, batches, tuple(batches))
        return {role: s.logp for role, s in scores.items()}

    compiled = jax.jit(logps, out_shardings=rows).lower(PARAMS, placed).compile()
    program = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in program
    alone = scored(batches, together=False)
    for role, logp in compiled(PARAMS, placed).items():
        np.testing.assert_allclose(logp, alone[role].logp, rtol=1e-6, atol=1e-6)


def test_rows_of_other_lengths_are_refused_together_and_fine_apart():
    batches = three_roles()
    longer = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, 2))) if x.ndim else x, batches["retain"]
    )
    batches = {**batches, "retain": longer}

    def shapes(together):
        roles = ("forget", "retain")
        return jax.eval_shape(
            lambda b: score_roles(toy.score, PARAMS, b, roles, together=together), batches
        )

    with pytest.raises(UserError, match="'retain': 14"):
        shapes(together=True)
    shapes(together=False)


def test_an_absent_role_is_named():
    with pytest.raises(UserError, match="needs a 'replay' batch"):
        score_roles(toy.score, PARAMS, three_roles(), ("forget", "replay"))
