import jax
import numpy as np
import optax
import pytest
from engine import toy
from engine.test_step import BATCHES, WEIGHTS, summed

from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.mesh import MeshConfig, make_mesh, put, put_rows, shardings
from jaxforget.engine.state import init_state
from jaxforget.engine.train import compile_step
from jaxforget.loops import plain


def shape(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf, np.float32), tree, is_leaf=is_shape)


def is_shape(x):
    return isinstance(x, tuple)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=16), "needs 16 devices"),
        (MeshConfig(fsdp=-1, tensor=-1), "at most one"),
        (MeshConfig(data=0), "must be >= 1"),
        (MeshConfig(tensor=9), "needs 9 devices"),
    ],
)
def test_impossible_meshes_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        make_mesh(config)


def test_minus_one_takes_the_remaining_devices():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert meshes.row_shards(mesh) == 4
    for config in (MeshConfig(fsdp=-1, tensor=2), MeshConfig(data=1, fsdp=-1, tensor=2)):
        assert dict(make_mesh(config).shape) == {"data": 1, "fsdp": 4, "tensor": 2}


def test_rules_place_matrices_and_their_moments_alike_and_drop_what_does_not_divide():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    params = shape(
        {
            "embed": {"w": (64, 16)},
            "layers": {
                "attn": {"q": {"w": (2, 16, 8), "b": (2, 8)}, "o": {"w": (2, 8, 16)}},
                "mlp": {"up": {"w": (2, 16, 7), "lora_a": (2, 16, 3), "lora_b": (2, 3, 7)}},
                "attn_norm": {"scale": (2, 16)},
            },
        }
    )
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    placed, moments = shardings(params, mesh), shardings(state, mesh)[0].mu
    expect = {
        "embed": {"w": ("tensor", "fsdp")},
        "layers": {
            "attn": {
                "q": {"w": (None, "fsdp", "tensor"), "b": (None, "tensor")},
                "o": {"w": (None, "tensor", "fsdp")},
            },
            "mlp": {
                "up": {
                    "w": (None, "fsdp", None),
                    "lora_a": (None, "fsdp", None),
                    "lora_b": (None, None, None),
                }
            },
            "attn_norm": {"scale": ()},
        },
    }
    jax.tree.map(lambda s, e: tuple(s.spec) == e or pytest.fail(f"{s} {e}"), placed, expect)
    jax.tree.map(lambda a, b: a == b or pytest.fail(f"{a} {b}"), placed, moments)


def curve(config, steps=5):
    mesh, optimizer, combiner = make_mesh(config), optax.adam(1e-2), summed(WEIGHTS)
    state = init_state(toy.params(), optimizer, combiner)
    placed = shardings(state, mesh)
    compiled = compile_step(plain(toy.score, toy.objective, combiner, optimizer), mesh, placed)
    state, losses = put(state, placed), []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = compiled(state, {}, put_rows(BATCHES, mesh), {})
            losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize(
    "config", [MeshConfig(8), MeshConfig(1, 4, 2), MeshConfig(2, 2, 2)], ids=str
)
def test_losses_do_not_depend_on_the_mesh(config):
    np.testing.assert_allclose(curve(config), curve(MeshConfig(1)), rtol=1e-5)
