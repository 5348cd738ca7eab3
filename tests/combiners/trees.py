"""Random trees of gradients, and the same as float64 vectors."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {"layers": {"mlp": {"w": (3, 4, 5)}}, "head": {"w": (6, 4), "b": (6,)}, "scale": (7,)}


def tree(rng, scale=1.0, dtype=jnp.float32):
    """A random normal tree; `flat` makes it a vector."""
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.normal(size=shape), dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def flat(some):
    """All leaves as one float64 vector, in the order of jax's leaves."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(some)])


def like(some, vector):
    """The inverse of `flat`, in the shapes and dtypes of `some`."""
    leaves, structure = jax.tree.flatten(some)
    ends = np.cumsum([x.size for x in leaves])
    parts = np.split(np.asarray(vector), ends[:-1])
    return jax.tree.unflatten(
        structure,
        [jnp.asarray(p.reshape(x.shape), x.dtype) for p, x in zip(parts, leaves, strict=True)],
    )


def conflicting(seed, names=("forget", "retain"), shared=-0.6, spread=0.5):
    """Gradients of some terms with a common part of alternating sign (shared < 0: conflict)."""
    rng = np.random.default_rng(seed)
    common = flat(tree(rng))
    some = tree(rng)
    found = {}
    for i, name in enumerate(names):
        sign = 1.0 if i % 2 == 0 else np.sign(shared)
        own = flat(tree(rng)) + abs(shared) * sign * common
        found[name] = like(some, own * 10.0 ** rng.uniform(-spread, spread))
    return found


def bits(some):
    """Leaves as unsigned integers, for comparison bit by bit."""
    return [np.atleast_1d(np.asarray(x)).view(np.uint8) for x in jax.tree.leaves(some)]


def same_bits(a, b):
    """Are two trees equal bit for bit?"""
    return all(np.array_equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


def times(some, factor):
    """A tree with every leaf multiplied."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), some)
