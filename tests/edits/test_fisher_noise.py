"""Fisher noise against its definition in float64, its distribution, and its independence."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.edits import fisher_forgetting, golatkar_forgetting
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten, unflatten

SHAPES = {
    "embed/w": (11, 4),
    "head/b": (11,),
    "head/w": (11, 4),
    "layers/mlp/up/b": (2, 6),
    "layers/mlp/up/w": (2, 4, 6),
}
KEY = jax.random.key(7)


def trees(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    params = {path: jnp.asarray(rng.normal(size=s), dtype) for path, s in SHAPES.items()}
    # importances from none to large, around the limit of the noise
    fisher = {
        path: jnp.asarray(10.0 ** rng.uniform(-5, 5, s) * (rng.random(s) > 0.2), jnp.float32)
        for path, s in SHAPES.items()
    }
    return unflatten(params), unflatten(fisher)


def standard(path, shape):
    own = jax.random.fold_in(KEY, zlib.crc32(path.encode()))
    return np.float64(jax.random.normal(own, shape))


def assert_noise(edited, params, deviation):
    """Each entry moved by its standard normal number times its own deviation, float64."""
    before, fishers = flatten(params[0]), flatten(params[1])
    for path, after in flatten(edited).items():
        want = np.empty(after.shape)
        noise, fisher = standard(path, after.shape), np.float64(fishers[path])
        for index in np.ndindex(after.shape):
            want[index] = noise[index] * deviation(path, fisher, index)
        moved = np.float64(after) - np.float64(before[path])
        np.testing.assert_allclose(moved, want, rtol=1e-4, atol=5e-7)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([1e-8, 1e-6, 1e-2]), st.sampled_from([0.0, 1e-3, 0.5])
)
def test_every_entry_follows_the_simple_form(seed, alpha, limit):
    both = trees(seed)
    got = fisher_forgetting(
        *both, key=KEY, alpha=alpha, limit=limit, wide="^head/", wide_factor=3.0
    )

    def deviation(path, fisher, index):
        small = limit if fisher[index] == 0 else min(np.sqrt(alpha / fisher[index]), limit)
        return small * (3.0 if path.startswith("head/") else 1.0)

    assert_noise(got, both, deviation)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-6, 1e-3]))
def test_every_entry_follows_golatkars_form(seed, alpha):
    both = trees(seed)
    got = golatkar_forgetting(*both, key=KEY, alpha=alpha, wide="^head/", wide_factor=3.0)

    def variance(fisher):
        return np.mean([alpha * min(1 / (f + 1e-8), 1e3) for f in fisher])

    def deviation(path, fisher, index):
        if path in ("head/b", "layers/mlp/up/b"):
            return np.sqrt(3.0 * variance([fisher[index]]))
        if path == "layers/mlp/up/w":  # [layer, in, out]: over in
            layer, _, unit = index
            return np.sqrt(variance(fisher[layer, :, unit]))
        factor = 3.0 if path == "head/w" else 1.0
        return np.sqrt(factor * variance(fisher[index[0]]))  # [token, in]

    assert_noise(got, both, deviation)


def test_the_noise_is_standard_normal_times_the_deviation():
    params = {"w": jnp.zeros((100, 400))}
    fisher = {"w": jnp.full((100, 400), 4.0)}
    moved = fisher_forgetting(params, fisher, key=KEY, alpha=1.0, limit=1.0)["w"]
    assert abs(moved.mean()) < 5 * 0.5 / 200
    np.testing.assert_allclose(moved.std(), 0.5, rtol=0.02)
    np.testing.assert_allclose((np.abs(moved) < 0.5).mean(), 0.6827, atol=0.015)
    assert np.unique(moved).size > 0.9 * moved.size


def test_noise_is_a_function_of_key_and_path_alone():
    params, fisher = trees(0)
    whole = fisher_forgetting(params, fisher, key=KEY)
    alone = fisher_forgetting({"head": params["head"]}, {"head": fisher["head"]}, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, alone["head"], whole["head"])
    turned = {k: fisher[k] for k in reversed(fisher)}
    again = fisher_forgetting({k: params[k] for k in reversed(params)}, turned, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    other = fisher_forgetting(params, fisher, key=jax.random.key(8))
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (other, whole)), strict=True))
    # two leaves of one shape do not share their noise
    two = {"a": jnp.zeros(50), "b": jnp.zeros(50)}
    noise = fisher_forgetting(two, two, key=KEY)
    assert abs(np.corrcoef(noise["a"], noise["b"])[0, 1]) < 0.5


@pytest.mark.parametrize("edit", [fisher_forgetting, golatkar_forgetting])
def test_the_mesh_does_not_change_it(edit):
    params = {"w": jnp.ones((16, 8))}
    fisher = {"w": jnp.linspace(0.0, 1.0, 128).reshape(16, 8)}
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    sharding = jax.NamedSharding(mesh, jax.P("a", "b"))
    spread = jax.device_put((params, fisher), sharding)
    got = edit(*spread, key=KEY, alpha=1e-2)["w"]
    assert got.sharding == sharding
    want = edit(params, fisher, key=KEY, alpha=1e-2)["w"]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_its_limits():
    params, fisher = trees(1, jnp.bfloat16)
    for edit in (fisher_forgetting, golatkar_forgetting):
        same = edit(params, fisher, key=KEY, alpha=0.0)
        jax.tree.map(np.testing.assert_array_equal, same, params)
        assert jax.tree.all(jax.tree.map(lambda x: x.dtype == jnp.bfloat16, same))
    huge = jax.tree.map(lambda x: jnp.full(x.shape, jnp.inf), fisher)
    jax.tree.map(np.testing.assert_array_equal, fisher_forgetting(params, huge, key=KEY), params)
    jax.tree.map(
        np.testing.assert_array_equal, fisher_forgetting(params, fisher, key=KEY, limit=0.0), params
    )


def test_what_makes_no_sense_is_refused():
    params, fisher = trees(0)
    with pytest.raises(UserError, match="alpha must be a finite number >= 0, got -1"):
        fisher_forgetting(params, fisher, key=KEY, alpha=-1)
    with pytest.raises(UserError, match="limit must be a finite"):
        fisher_forgetting(params, fisher, key=KEY, limit=np.inf)
    with pytest.raises(UserError, match="wide_factor must be"):
        golatkar_forgetting(params, fisher, key=KEY, wide_factor=-1)
    with pytest.raises(UserError, match="wide 'heads' matches no leaf"):
        fisher_forgetting(params, fisher, key=KEY, wide="heads")
    with pytest.raises(UserError, match="no regular expression"):
        fisher_forgetting(params, fisher, key=KEY, wide="(")
    with pytest.raises(UserError, match="only one has 'embed/w'"):
        fisher_forgetting(params, {"head": fisher["head"]}, key=KEY, alpha=0)
    with pytest.raises(UserError, match="differ at 'head/b'"):
        wrong = {**fisher, "head": {**fisher["head"], "b": jnp.ones(3)}}
        golatkar_forgetting(params, wrong, key=KEY)
    with pytest.raises(UserError, match="one key of jax.random.key"):
        golatkar_forgetting(params, fisher, key=jnp.zeros(2, jnp.uint32))
