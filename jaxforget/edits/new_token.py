"""Teaching a model a token of its own: one vector is trained, everything else stays."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params, flatten, merge, unflatten
from jaxforget.engine.types import ScoreFn, TokenBatch
from jaxforget.objectives import mean_logp

EMBED, HEAD, DOWN = "embed/w", "head/w", "layers/mlp/down/w"

type Noise = Literal["mean", "mean_absolute"]
"""The noise's deviation: |mean of the weights|, or the mean of their absolute values."""


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Attributes:
      batches: of one shape, in order.
      rate: of Adam, which begins anew.
      layer: whose `mlp/down` is perturbed in every step, from 0; None: none.
    """

    batches: Iterable[TokenBatch]
    rate: float
    layer: int | None = None


def with_row(params: Params, token: int | Array, row: Array) -> Params:
    """The parameters with a token's row, in the embedding and in a head of its own alike.

    Args:
      params: with `embed/w` `[V, D]`, and `head/w` `[V, D]` unless they are tied.
      token: its id.
      row: `[D]`.
    """
    flat = flatten(params)
    chosen = {path: flat[path] for path in (EMBED, HEAD) if path in flat}
    rows = {path: leaf.at[token].set(row.astype(leaf.dtype)) for path, leaf in chosen.items()}
    return unflatten({**flat, **rows})


def perturbed(params: Params, layer: int | Array, key: Array, noise: Noise) -> Params:
    """The parameters with clipped normal noise on one layer's `mlp/down`.

    The published code takes the mean of the weights, which may be negative, as deviation and as
    bound; here it is its size.

    Args:
      params: with `layers/mlp/down/w` `[n, F, D]`.
      layer: from 0.
      key: of the noise.
      noise: see `Noise`.
    """
    flat = flatten(params)
    stack = flat[DOWN]
    weight = stack[layer].astype(jnp.float32)
    bound = jnp.abs(weight.mean()) if noise == "mean" else jnp.abs(weight).mean()
    drawn = jnp.clip(bound * jax.random.normal(key, weight.shape), -bound, bound)
    return unflatten({**flat, DOWN: stack.at[layer].add(drawn.astype(stack.dtype))})


def token_loss(score: ScoreFn, params: Params, token: int | Array, row: Array, batch: TokenBatch):
    """Mean negative log-likelihood of the labelled targets, with `row` as the token's vector.

    Args:
      score: the model.
      params: all of them.
      token: its id.
      row: float32 `[D]`.
      batch: sequences of prompt, token, answer, token, of which the answer and the closing token
        are labelled.
    Returns:
      float32 scalar, nats per token.
    Source: UniErase (arXiv 2505.15674), stage 1.
    """
    return -mean_logp(score(with_row(params, token, row), batch))


def train_row(
    score: ScoreFn,
    params: Params,
    frozen: Params,
    token: int,
    stages: Iterable[Stage],
    *,
    key: Array,
    noise: Noise = "mean",
) -> tuple[Array, Array]:
    """Train a token's vector by Adam; nothing else changes, the noise is drawn anew each step.

    Args:
      score: the model.
      params, frozen: its leaves; the embedding is among `params`.
      token: its id.
      stages: see `Stage`, in order.
      key: of the noise.
      noise: see `Noise`.
    Returns:
      (float32 `[D]`, float32 `[steps]` the loss before each step).
    Raises:
      UserError: no batch, or a loss that is not finite.
    Source: UniErase (arXiv 2505.15674) and its published code.
    """
    run = _steps(score, noise)
    row = jnp.asarray(flatten(params)[EMBED])[token].astype(jnp.float32)
    losses = []
    for stage in stages:
        moments = optax.scale_by_adam().init(row)
        for batch in stage.batches:
            step = run[stage.layer is not None]
            layer = jnp.int32(stage.layer or 0)
            now = jax.random.fold_in(key, len(losses))
            rest = frozen, jnp.int32(token), jnp.float32(stage.rate), (layer, now)
            row, moments, loss = step(row, moments, params, *rest, batch)
            losses.append(loss)
    if not losses:
        raise UserError("new token: there is no batch to train on")
    found = jnp.stack(losses)
    if not bool(jnp.isfinite(found).all()):
        raise UserError("new token: a loss is not finite; lower its learning rate")
    return row, found


def _steps(score: ScoreFn, noise: Noise) -> dict[bool, Callable[..., Any]]:
    """Compiled steps without and with noise."""

    def make(noisy: bool) -> Callable[..., Any]:
        def step(row, moments, params, frozen, token, rate, drawn, batch):
            whole = merge(frozen, params)
            layer, now = drawn
            whole = perturbed(whole, layer, now, noise) if noisy else whole
            loss, gradient = jax.value_and_grad(
                lambda vector: token_loss(score, whole, token, vector, batch)
            )(row)
            direction, moments = optax.scale_by_adam().update(gradient, moments)
            return row - rate * direction, moments, loss

        return jax.jit(step, compiler_options=compiler_options())

    return {noisy: make(noisy) for noisy in (False, True)}
