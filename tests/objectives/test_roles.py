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


ROWS = [(4, 8, 6), (7, 13, 5), "tiled"]


def three_roles(bounds=("bound", "bound", "bound"), rows=(4, 8, 6)):
    """Rows of three roles; "tiled": as many of each, which lie side by side."""
    slots, counts = (3, 6, 1), (7, 13, 5)
    tiled = rows == "tiled"
    if tiled:
        slots, rows = (2, 3, 1), (5, 5, 5)
    made = {
        role: toy.pack(toy.examples(i, counts[i]), rows[i], slots[i], bounds[i])
        for i, role in enumerate(("forget", "retain", "general"))
    }
    return with_totals({role: toy.tiled(b) if tiled else b for role, b in made.items()})


@partial(jax.jit, static_argnums=1)
def scored(batches, together):
    return score_roles(toy.score, PARAMS, batches, tuple(batches), together=together)


@pytest.mark.parametrize(
    "bounds", [("bound",) * 3, (None,) * 3, ("bound", None, "bound"), (4, 10, 10)]
)
@pytest.mark.parametrize("rows", ROWS)
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

    for rows in (ROWS[0], "tiled"):
        batches = three_roles(rows=rows)
        jax.eval_shape(lambda b: score_roles(counting, PARAMS, b, tuple(b)), batches)
    assert calls == [(18, toy.LENGTH), (5, 3 * toy.LENGTH)]


def test_tiles_of_rows_side_by_side_are_those_of_each():
    """Every token still has exactly its own example before it among the keys of its tile."""
    found = {}

    def listening(params, batch):
        found["batch"] = batch
        return toy.score(params, batch)

    score_roles(listening, PARAMS, three_roles(rows="tiled"), ("forget", "retain", "general"))
    batch = jax.tree.map(np.asarray, found["batch"])
    assert len(batch.tiles.queries) == 2  # equal kinds are one
    for row in range(5):
        asked = np.concatenate([each[row].ravel() for each in batch.tiles.queries])
        real = np.flatnonzero(batch.segments[row])
        assert sorted(asked[asked >= 0]) == real.tolist()
        np.testing.assert_array_equal(asked[batch.tiles.back[row, real]], real)
        for queries, keys in zip(batch.tiles.queries, batch.tiles.keys, strict=True):
            for some, among in zip(queries[row], keys[row], strict=True):
                numbers = set(batch.segments[row, [*some[some >= 0], *among[among >= 0]]])
                assert len(numbers) <= 1
                if (some >= 0).any():
                    end = max(some)
                    begin = end - batch.positions[row, end]
                    assert among[among >= 0].tolist() == list(range(begin, end + 1))


@pytest.mark.parametrize("rows", ROWS)
def test_together_and_apart_have_the_same_gradient(rows):
    batches = three_roles(rows=rows)
    weights = {"forget": 1.0, "retain": -2.0, "general": 0.5}

    def total(params, together):
        scores = score_roles(toy.score, params, batches, tuple(batches), together=together)
        return sum(weights[role] * (s.logp**2 * s.mask).sum() for role, s in scores.items())

    step = jax.jit(jax.grad(total), static_argnums=1)
    ours, alone = (step(PARAMS, together) for together in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), ours, alone)


@pytest.mark.parametrize("rows", [(4, 8, 12), "tiled"])
def test_rows_never_leave_their_device(rows):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    batches = three_roles(rows=rows)
    if len(batches["forget"].tokens) == 5:  # as many as there are devices
        batches = jax.tree.map(lambda x: x[:4] if x.ndim else x, batches)
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

    with pytest.raises(UserError, match="'retain': 18"):
        shapes(together=True)
    shapes(together=False)


def test_an_absent_role_is_named():
    with pytest.raises(UserError, match="needs a 'replay' batch"):
        score_roles(toy.score, PARAMS, three_roles(), ("forget", "replay"))
