"""The training state: made once, donated to every step, saved whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from jaxforget.engine import mesh as meshes
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Combiner, Skips, State


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    combiner: Combiner,
    *,
    seed: int = 0,
    loop_state: Any = (),
) -> State:
    """State before the first step.

    Args:
      params: trained leaves, nested dict of float arrays.
      optimizer: any optax transformation.
      combiner: see `Combiner`.
      seed: of the run's random key, >= 0.
      loop_state: initial state of a loop that carries one.
    """
    zero = jnp.zeros((), jnp.int32)
    return State(
        step=zero,
        params=params,
        opt_state=optimizer.init(params),
        combiner_state=combiner.init(params),
        loop_state=loop_state,
        rng=jax.random.key_data(jax.random.key(seed)),
        skips=Skips(total=jnp.zeros((), jnp.int32), in_a_row=jnp.zeros((), jnp.int32)),
    )


Begin = Callable[[Params], State]
"""From the leaves that are trained to the state before the first step."""


def state_shapes(begin: Begin, params: Params, mesh: Mesh | AbstractMesh) -> State:
    """The state that `begin` would make, as shapes that say where they lie: nothing is allocated.

    Args:
      begin: see `Begin`.
      params: trained leaves, arrays or shapes.
      mesh: of the run.
    """
    shapes = jax.eval_shape(begin, params)
    return jax.tree.map(meshes.shape_at, shapes, meshes.shardings(shapes, mesh))


def make_state(begin: Begin, params: Params, shapes: State, *, consume: bool = False) -> State:
    """The state itself, each leaf where `shapes` says.

    Args:
      begin: see `Begin`.
      params: trained leaves, whole on every process. They are copied, since a state is donated to
        the first step, and stay the caller's.
      shapes: of `state_shapes`.
      consume: they are not copied, and are gone afterwards.
    """
    placed = shardings_of(shapes)
    own = params if consume else jax.tree.map(np.array, params)
    own = meshes.put(own, placed.params, donate=consume)
    return jax.jit(begin, out_shardings=placed, donate_argnums=0)(own)


def shardings_of(shapes: State) -> Any:
    """Where every leaf lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)
