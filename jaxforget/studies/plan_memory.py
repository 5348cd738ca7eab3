"""What a step holds and needs on each device, counted from shapes.

What it holds follows from the shapes and where each leaf lies. What it needs beside that is the
largest of three moments: the output head's gradient, a layer's gradient, and the optimizer, which
takes a part of the model at a time unless what it does is finished by a combiner. How many copies
XLA makes of what was found by looking at compiled steps; tests hold the result to 15 % of what it
says.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxforget.engine.partwise import PART
from jaxforget.engine.tree import flatten
from jaxforget.engine.types import TokenBatch
from jaxforget.models.config import DecoderConfig, param_shapes
from jaxforget.studies.abstract import AbstractStep

_BLOCK = 2**29  # bytes of a block of logits on accelerators, see the kernels' block lengths
_HOST_BLOCK, _HOST_WHOLE = 2**26, 2**28  # and on CPUs, and of one block without a loop


@dataclass(frozen=True)
class Memory:
    """Bytes of one device during a step.

    Attributes:
      weights: all parameters, trained or not.
      state: what the optimizer, the combiner and the loop carry.
      inputs: batches and reference scores.
      transient: activations, gradients, gathered weights, blocks of logits.
    """

    weights: float
    state: float
    inputs: float
    transient: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.state + self.inputs + self.transient


def _bytes(tree: Any) -> float:
    """Of one device."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))


def memory_of(
    step: AbstractStep, config: Any, cfg: DecoderConfig, *, in_parts: bool, on_host: bool
) -> Memory:
    """Bytes of one device while a step runs.

    Args:
      step: see `AbstractStep`.
      config: of the run, an `UnlearnConfig` or a `FinetuneConfig`.
      cfg: the architecture.
      in_parts: the optimizer takes a part of the model at a time.
      on_host: blocks of logits as on a CPU.
    """
    block = _HOST_BLOCK if on_host else _BLOCK
    trained = _bytes(step.state.params)
    weights = trained + _bytes(step.frozen)
    state = _bytes(step.state) - trained
    inputs = _bytes((step.batches, step.reference))
    transient = _transient(step, config, cfg, trained, block, in_parts)
    return Memory(weights, state, inputs, transient)


def _transient(
    step: AbstractStep,
    config: Any,
    cfg: DecoderConfig,
    trained: float,
    block: int,
    in_parts: bool,
) -> float:
    """The most that is held beside arguments: at the head, in a layer, or in the optimizer."""
    settings, shape = config.train, step.mesh.shape
    item = jnp.dtype(settings.compute).itemsize
    shards = shape["data"] * shape["fsdp"] * settings.accumulate
    batches, tensor = step.batches.values(), shape["tensor"]
    tokens = sum(batch.tokens.size for batch in batches) / shards
    seen = sum(map(_products_seen, batches)) / shards / tokens
    floats = _per_token(cfg, seen, settings.remat, tensor)
    head = float(cfg.vocab_size * cfg.hidden_size) / tensor
    paths = flatten(step.state.params)
    learns_head = "embed/w" in paths or "head/w" in paths
    gathered = shape["fsdp"] > 1
    layer = sum(math.prod(s[1:]) for path, s in param_shapes(cfg).items() if "layers/" in path)
    kept = item * tokens * (floats.saved * cfg.layers)
    slots = sum(b.tokens.shape[0] * (b.max_targets or b.tokens.shape[1]) for b in batches) / shards
    every = 4.0 * slots * cfg.vocab_size / tensor
    looped = every > (_HOST_WHOLE if block == _HOST_BLOCK else block)
    logits = min(block, every) if looped else every
    copies = (1 if settings.accumulate > 1 else 0) * trained
    if gathered:  # whole weights on every device, in two layouts, and their gradient
        at_head = kept + (1 if looped else 1.5) * logits + item * head * (3 if looped else 1)
        at_head += 4 * head if learns_head or not looped else 0.0
    else:
        at_head = kept + (3 if looped else 2) * logits
        at_head += (8 if looped else 4) * head if learns_head else 0.0
    in_layer = kept + item * tokens * floats.working + (2 * 4 * layer / tensor if gathered else 0)
    in_layer += trained + (4 * head if learns_head else 0.0)
    moments = sum(leaf.size > 1 for leaf in jax.tree.leaves(step.state.opt_state))
    written = 1 + moments / max(1, len(jax.tree.leaves(step.state.params)))  # update, new moments
    whole = trained if not in_parts else min(trained, _largest_part(step))
    return copies + max(at_head, in_layer, trained + (written + in_parts) * whole)


def _largest_part(step: AbstractStep) -> float:
    """Bytes on a device of the parameters that the optimizer moves at once, see `partwise`."""
    alone = step.mesh.size == 1
    stacked, layer, others = 0.0, 0.0, [0.0]
    for path, leaf in flatten(step.state.params).items():
        size = _bytes(leaf)
        if "layers/" in path:
            stacked, layer = stacked + size, layer + size / leaf.shape[0]
        else:
            others.append(min(size, 4 * PART) if alone else size)
    return max(min(stacked, max(4 * PART, layer)), *others)


@dataclass(frozen=True)
class _Floats:
    saved: float  # of a token and layer, for the backward pass
    working: float  # of a token, while a layer's gradient is made


def _products_seen(batch: TokenBatch) -> float:
    """Pairs of a query and a key that attention multiplies in a batch."""
    if batch.tiles is None:
        length = batch.tokens.shape[1]
        return batch.tokens.size * (length if length < 256 else 0.75 * length)  # in stretches
    pairs = zip(batch.tiles.queries, batch.tiles.keys, strict=True)
    return float(sum(queries.size * keys.shape[2] for queries, keys in pairs))


def _per_token(cfg: DecoderConfig, seen: float, remat: str, tensor: int) -> _Floats:
    wide, heads = cfg.hidden_size, cfg.heads * cfg.head_dim / tensor
    inner, gates = cfg.mlp_size / tensor, 2 if cfg.gated else 1
    projections = wide + heads + 2 * cfg.kv_heads * cfg.head_dim / tensor + gates * inner
    attention = cfg.heads / tensor * seen
    working = 4 * attention + 3 * inner + 2 * wide
    if remat == "full":
        return _Floats(wide, working + 2 * inner + projections)
    saved = wide + projections
    if remat == "none":
        saved += 5 * attention + 3 * inner + 2 * wide
    return _Floats(saved, working)
