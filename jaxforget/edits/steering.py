"""Which output of a layer would make a model say a token: one vector a fact, found by Adam."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxforget.engine.tree import Params
from jaxforget.engine.types import Push, ScoreFn, Scores, TokenBatch
from jaxforget.objectives.distribution import side
from jaxforget.objectives.steering import shortened, steering_losses
from jaxforget_kernels import linear_kl

SLOTS = 2  # of a question: where the token is to be said, and the end of the neutral words


@dataclass(frozen=True)
class Search:
    """How the vectors are found.

    Attributes:
      steps: of Adam, >= 1.
      rate: its learning rate, > 0.
      kl_weight, decay: see `steering_losses`.
      limit: longest vector, as a share of what it is added to, > 0.
      stop: a fact whose loss is below rests.
    """

    steps: int = 10
    rate: float = 0.1
    kl_weight: float = 0.0625
    decay: float = 0.5
    limit: float = 0.75
    stop: float = 0.05


class Wanted(NamedTuple):
    """Of every fact of a batch: the output that is wanted `[B, D]`, and its loss `[B]`."""

    output: Array
    loss: Array


def questions(batch: TokenBatch) -> TokenBatch:
    """Rows of one question each, with just the slots they label."""
    return dataclasses.replace(batch, max_targets=SLOTS)


def wanted_outputs(
    score: ScoreFn, params: Params, batch: TokenBatch, *, layer: int, search: Search
) -> Wanted:
    """Outputs of a layer at the first labelled place that make the model say its target.

    All facts of a batch are searched side by side; none sees another.

    Args:
      score: the model.
      params: all of them.
      batch: one question a row, with two labelled places: where the target is to be said, and one
        behind it where the model shall say what it says.
      layer: whose output is changed, from 0.
      search: see `Search`.
    Returns:
      See `Wanted`; rows without an example are meaningless.
    Source: Meng et al. 2022, ROME (arXiv 2202.05262), section 3.1; UniErase (arXiv 2505.15674).
    """
    batch = questions(batch)
    before = jax.lax.stop_gradient(score(params, batch, residual=layer))
    assert before.residual is not None
    start = before.residual[:, 0].astype(jnp.float32)
    place = jnp.where(batch.mask.sum(-1) > 0, jnp.argmax(batch.mask != 0, axis=-1), -1)

    def losses(delta: Array) -> Array:
        push = Push(at=place.astype(jnp.int32), by=delta, layer=layer)
        after = score(params, batch, push=push)
        gap = _divergence(after, before)
        return steering_losses(
            after.logp[:, 0], gap, delta, start, kl_weight=search.kl_weight, decay=search.decay
        )

    adam = optax.scale_by_adam()

    def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        delta, moments = carry
        value, pull_back = jax.vjp(losses, delta)
        (gradient,) = pull_back(jnp.ones_like(value))  # a row's loss reads its own vector alone
        direction, moments = adam.update(gradient, moments)
        moved = shortened(delta - search.rate * cast(Array, direction), start, search.limit)
        return (jnp.where((value >= search.stop)[:, None], moved, delta), moments), None

    zero = jnp.zeros_like(start)
    (delta, _), _ = jax.lax.scan(step, (zero, adam.init(zero)), None, length=search.steps)
    return Wanted(start + delta, losses(delta))


def _divergence(after: Scores, before: Scores) -> Array:
    """KL(with the vector || without) at the second slot, float32 `[B]`."""
    hidden, weight, bias, softcap = side(after)
    start, start_weight, start_bias, start_softcap = side(before)
    found = linear_kl(
        hidden[:, 1:],
        weight,
        start[:, 1:],
        start_weight,
        bias_p=bias,
        bias_q=start_bias,
        softcap_p=softcap,
        softcap_q=start_softcap,
    )
    return found[:, 0]
