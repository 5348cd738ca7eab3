"""What every layer of a decoder holds of packed examples, in one forward pass."""

import jax.numpy as jnp
from jax import Array

from jaxforget.engine.slots import labelled_slots
from jaxforget.engine.tree import Params
from jaxforget.engine.types import TokenBatch
from jaxforget.models import layers
from jaxforget.models.config import DecoderConfig
from jaxforget.models.decoder import Compute, head, hidden_states
from jaxforget.models.inside import Look
from jaxforget_kernels import linear_cross_entropy


def layer_logp(params: Params, batch: TokenBatch, cfg: DecoderConfig, compute: Compute) -> Array:
    """The logit lens: the targets' log-probabilities as the final norm and the head read them in
    every layer's output.

    Args:
      params: as from `decoder.init`.
      batch: packed rows.
      cfg: the architecture.
      compute: dtype of the computation.
    Returns:
      float32 `[n, B, S]`: mean over each example's labelled targets, nats; the last layer's is
      what the model itself says. 0 where there is no example.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    slots = labelled_slots(batch.mask, _slots(batch))
    targets = jnp.take_along_axis(batch.targets, slots, axis=1)
    output = head(params, cfg, compute)
    weights = _weights(batch, slots)

    def read(x: Array) -> Array:
        x = jnp.take_along_axis(x, slots[:, :, None], axis=1)
        x = layers.norm(x, params["final_norm"], cfg)
        logp = linear_cross_entropy(
            x, output.weight, targets, bias=output.bias, softcap=output.softcap
        )
        assert not isinstance(logp, tuple)
        return jnp.einsum("bst,bt->bs", weights, logp)

    return _every(params, batch, cfg, compute, read)


def layer_states(params: Params, batch: TokenBatch, cfg: DecoderConfig, compute: Compute) -> Array:
    """The residual stream behind every layer, averaged over each example's labelled slots.

    Args:
      params, batch, cfg, compute: as for `layer_logp`.
    Returns:
      float32 `[n, B, S, D]`; 0 where there is no example.
    """
    slots = labelled_slots(batch.mask, _slots(batch))
    weights = _weights(batch, slots)

    def read(x: Array) -> Array:
        x = jnp.take_along_axis(x, slots[:, :, None], axis=1).astype(jnp.float32)
        return layers.matmul(weights, x)

    return _every(params, batch, cfg, compute, read)


def _every(params, batch, cfg, compute, read) -> Array:
    rows = batch.tokens, batch.segments, batch.positions
    return hidden_states(params, *rows, cfg, compute, look=Look(every=read))[1].every


def _slots(batch: TokenBatch) -> int:
    return batch.mask.shape[1] if batch.max_targets is None else batch.max_targets


def _weights(batch: TokenBatch, slots: Array) -> Array:
    """Share of each slot in the mean of each example, float32 `[B, S, T]`."""
    mask, segments = (
        jnp.take_along_axis(column, slots, axis=1) for column in (batch.mask, batch.segments)
    )
    number = jnp.arange(1, batch.example.shape[1] + 1, dtype=segments.dtype)
    mine = (segments[:, None, :] == number[None, :, None]) & (mask[:, None, :] != 0)
    counts = jnp.maximum(mine.sum(axis=-1, keepdims=True), 1)
    return mine.astype(jnp.float32) / counts.astype(jnp.float32)
