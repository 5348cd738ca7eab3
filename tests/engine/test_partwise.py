import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.partwise import PART, Entrywise, update_in_parts

OPTIMIZERS = {
    "adamw": {"weight_decay": 0.1},
    "lion": {"weight_decay": 0.1},
    "sgd": {"momentum": 0.9},
}


def made(name, clip):
    return make_optimizer(
        OptimizerConfig(name=name, learning_rate=0.1, clip_norm=clip, **OPTIMIZERS[name]), 10
    )


def params(layers=6, words=12):
    rng = np.random.default_rng(0)

    def of(*shape):
        return jnp.array(rng.normal(size=shape), jnp.float32)

    return {
        "embed": {"w": of(words, 5)},
        "final_norm": {"scale": of(5)},
        "layers": {"mlp": {"w": of(layers, 3, 4), "b": of(layers, 4)}, "scale": of(layers, 3)},
    }


def gradient_at(tree, step):
    return jax.tree.map(lambda leaf: jnp.sin(7 * leaf + step), tree)


def in_parts(optimizer, part):
    @jax.jit
    def update(gradient, state, tree):
        norm = optax.tree.norm(gradient)
        return update_in_parts(
            optimizer, gradient, norm, state, tree, jnp.isfinite(norm), part=part
        )

    return update


@settings(max_examples=12)
@given(
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from([None, 0.5, 100.0]),
    st.sampled_from([1, 16, 30, 10**6]),
    st.sampled_from([(6, 12), (7, 13), (1, 1)]),
)
def test_parts_give_what_the_whole_gives(name, clip, part, sizes):
    optimizer = made(name, clip)
    own = whole = params(*sizes), optimizer.init(params(*sizes))
    divided = in_parts(optimizer, part)
    for step in range(3):
        gradient = gradient_at(whole[0], step)
        update, state = optimizer.update(gradient, whole[1], whole[0])
        whole = optax.apply_updates(whole[0], update), state
        *own, norm = divided(gradient_at(own[0], step), own[1], own[0])
        own = tuple(own)
        np.testing.assert_allclose(norm, optax.tree.norm(update), rtol=1e-5)
    assert jax.tree.structure(own) == jax.tree.structure(whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), own, whole)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_not_allowed_changes_nothing(name):
    optimizer, tree = made(name, 1.0), params()
    _, state = optimizer.update(gradient_at(tree, 0), optimizer.init(tree), tree)
    bad = gradient_at(tree, 1)
    bad["layers"]["mlp"]["w"] = bad["layers"]["mlp"]["w"].at[3, 1, 2].set(jnp.nan)
    *after, _ = in_parts(optimizer, 16)(bad, state, tree)
    jax.tree.map(np.testing.assert_array_equal, tuple(after), (tree, state))


def test_beside_the_gradient_an_update_needs_no_copy_of_what_is_trained():
    shapes = {
        "embed": {"w": jax.ShapeDtypeStruct((49152, 512), jnp.float32)},
        "layers": {"w": jax.ShapeDtypeStruct((24, 1024, 1024), jnp.float32)},
    }
    trained = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))

    def held(optimizer):
        def step(tree, state, gradient):
            if isinstance(optimizer, Entrywise):
                norm = optax.tree.norm(gradient)
                return update_in_parts(optimizer, gradient, norm, state, tree, jnp.isfinite(norm))
            update, state = optimizer.update(gradient, state, tree)
            return optax.apply_updates(tree, update), state, optax.tree.norm(update)

        state = jax.eval_shape(optimizer.init, shapes)
        program = jax.jit(step, donate_argnums=(0, 1)).lower(shapes, state, shapes).compile()
        return program.memory_analysis().temp_size_in_bytes

    parts = made("adamw", 1.0)
    assert held(parts) < 7 * 4 * PART < 0.6 * trained
    assert held(optax.GradientTransformation(parts.init, parts.update)) > 1.5 * trained


def test_it_is_an_optax_transformation_still():
    optimizer, tree = made("adamw", 1.0), params()
    chained = optax.chain(optax.scale(2.0), optimizer)
    assert not isinstance(chained, Entrywise)
    update, _ = chained.update(gradient_at(tree, 0), chained.init(tree), tree)
    assert jax.tree.structure(update) == jax.tree.structure(tree)
