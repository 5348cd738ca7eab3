import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxforget.engine.errors import UserError
from jaxforget.engine.mesh import MeshConfig, make_mesh, shardings
from jaxforget.engine.moments import decode, dither, encode
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.partwise import update_in_parts

KINDS = ("bfloat16", "int8")


def made(kind, name="adamw", **more):
    options = {"momentum": 0.9} if name == "sgd" else {}
    config = {"learning_rate": 0.02, "schedule": "constant", "moments": kind, **options, **more}
    return make_optimizer(OptimizerConfig(name=name, **config), 10)


@settings(max_examples=20)
@given(
    st.sampled_from(KINDS),
    st.booleans(),
    st.floats(-12, 4),
    st.sampled_from([(), (7,), (3, 33), (2, 3, 5)]),
)
def test_stored_moments_are_near_and_on_average_exact(kind, signed, exponent, shape):
    rng = np.random.default_rng(abs(hash((kind, signed, shape))) % 2**32)
    spread = rng.normal(size=shape) * 10.0 ** (exponent - 2 * rng.random(shape))
    x = np.asarray(spread if signed else np.abs(spread), np.float32)
    noise = rng.integers(0, 2**32, size=(400, *shape), dtype=np.uint32)
    found = np.asarray(
        jax.vmap(lambda n: decode(encode(jnp.asarray(x), n, kind, signed=signed)))(noise)
    ).astype(np.float64)
    size = np.abs(x).astype(np.float64)
    largest = size.max(axis=-1, keepdims=True) if x.ndim else size
    if kind == "bfloat16":
        step = size * 2.0**-7
    else:  # the gap between neighbouring levels about |x|
        power, levels = (2, 127) if signed else (4, 255)
        level = np.floor((size / largest) ** (1 / power) * levels)
        low, high = (((level + k) / levels) ** power * largest for k in (-1, 2))
        step = (high - np.maximum(low, 0)) / 1.5
    assert (np.abs(found - x) <= 1.01 * step).all()
    assert (np.abs(found.mean(0) - x) <= 0.2 * step).all()


def test_nothing_is_nothing_and_small_second_moments_stay():
    noise = jnp.full((2, 3), 2**32 - 1, jnp.uint32)
    x = jnp.array([[0.0, 0.0, 0.0], [1.0, 1e-15, 0.0]])
    for kind in KINDS:
        found = decode(encode(x, noise, kind, signed=False))
        assert (np.asarray(found == 0) == (np.asarray(x) == 0)).all()
        np.testing.assert_array_equal(decode(encode(-0 * x, noise, kind, signed=True)), 0 * x)


def test_the_dither_is_uniform_and_changes_with_the_step():
    g = jnp.linspace(-1, 1, 4096).reshape(64, 64)
    first, second = (np.asarray(dither(g, 0 * g, jnp.int32(k))) for k in (0, 1))
    shares = np.histogram(first / 2.0**32, bins=16, range=(0, 1))[0] / first.size
    np.testing.assert_allclose(shares, 1 / 16, atol=0.015)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def regression(kind, name):
    """Least squares with inputs of very different sizes: its loss after some steps."""
    rng = np.random.default_rng(0)
    inputs = jnp.array(rng.normal(size=(256, 24)) * 10.0 ** np.linspace(-1, 1, 24), jnp.float32)
    truth = jnp.array(rng.normal(size=(24, 8)), jnp.float32)
    optimizer = made(kind, name, beta2=0.99, clip_norm=None, **RATES[name])

    def loss(params):
        return jnp.square(inputs @ (params["w"] - truth)).mean()

    def step(carry, _):
        params, state = carry
        update, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, update), state), None

    params = {"w": jnp.zeros((24, 8))}
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, 400)
    return float(loss(params)), float(loss({"w": jnp.zeros((24, 8))}))


RATES = {"adamw": {}, "lion": {"learning_rate": 0.005}, "sgd": {"learning_rate": 1e-3}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RATES)
def test_training_goes_as_far_as_with_whole_moments(name, kind):
    whole, start = regression("float32", name)
    stored, _ = regression(kind, name)
    assert whole < 0.02 * start
    assert stored < 1.25 * whole + 1e-4 * start


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_the_whole_store_the_same_bits(kind):
    optimizer = made(kind, clip_norm=None)
    rng = np.random.default_rng(1)
    params = {
        "embed": {"w": jnp.array(rng.normal(size=(12, 5)), jnp.float32)},
        "layers": {"w": jnp.array(rng.normal(size=(6, 3, 4)), jnp.float32)},
    }
    gradient = jax.tree.map(jnp.sin, params)
    state = optimizer.init(params)
    norm = optax.tree.norm(gradient)
    _, parts, _ = jax.jit(lambda *a: update_in_parts(optimizer, *a, jnp.array(True), part=16))(
        gradient, norm, state, params
    )
    _, whole = jax.jit(optimizer.update)(gradient, state, params)
    assert jax.tree.structure(parts) == jax.tree.structure(whole) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_the_first_moments_are_zeros_as_they_would_be_encoded(kind, name):
    """And are no work for the compiler, which would encode its own constants for minutes."""
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(5), "scale": jnp.ones(())}
    begin = made(kind, name).init
    state = begin(params)
    assert "reduce_max" not in str(jax.make_jaxpr(begin)(params))
    # a step on nothing encodes moments that are still 0
    nothing = jax.tree.map(jnp.zeros_like, params)
    _, after = made(kind, name).update(nothing, state, params)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        if left.dtype in (jnp.int8, jnp.uint8, jnp.bfloat16, jnp.float32):
            assert not left.any() and not right.any()


def test_bytes_and_places_of_stored_moments():
    params = {"layers": {"mlp": {"up": {"w": jax.ShapeDtypeStruct((4, 256, 512), jnp.float32)}}}}
    sizes = {}
    for kind in ("float32", *KINDS):
        state = jax.eval_shape(made(kind).init, params)
        sizes[kind] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert sizes["bfloat16"] / sizes["float32"] == pytest.approx(0.5, rel=0.01)
    assert sizes["int8"] / sizes["float32"] == pytest.approx(0.25, rel=0.02)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    placed = {each.spec for each in jax.tree.leaves(shardings(state, mesh))}
    assert {P(None, "fsdp", "tensor"), P(None, "fsdp", None)} <= placed


def test_what_has_no_moments_stores_none():
    with pytest.raises(UserError, match="without optimizer.momentum"):
        make_optimizer(OptimizerConfig(name="sgd", moments="int8"), 1)
