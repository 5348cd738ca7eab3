"""The training state: made once, donated to every step, saved whole."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

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
