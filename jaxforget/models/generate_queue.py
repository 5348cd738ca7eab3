"""Generation of many answers in one compiled program: a slot that is done takes the next prompt.

A batch that waits for its longest answer computes mostly rows that have ended; here at most an
eighth of the slots idles. A prompt's answer does not depend on which slot it meets.

What all prompts begin with, such as a system prompt or worked examples, is computed once.

Shapes: N prompts, B slots, R of them filled at a time, Q tokens that all prompts begin with, P
further prompt places, C most new tokens, S = Q + P + C places of the cache.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params
from jaxforget.models import decoder
from jaxforget.models.config import DecoderConfig
from jaxforget.models.decoder import Compute
from jaxforget.models.generate_loop import beginning, cast, decode, prefill
from jaxforget.models.sampling import Sampling, choose_tokens


class _Queue(NamedTuple):
    taken: Array  # prompts handed out
    prompt: Array  # [B], of each slot; N where it has none
    made: Array  # [B], new tokens of it
    token: Array  # [B], the newest
    real: Array  # [B], tokens of the prompt, those that all begin with included
    keys: Array  # [n, B, KV, h, S]
    values: Array  # [n, B, KV, S, h]
    tokens: Array  # [N, C]
    lengths: Array  # [N]


@functools.cache
def program() -> Any:
    """The jitted `_generate`, compiled once for every combination of shapes and static options."""
    # made at the first call: asking for compiler options wakes the backend
    static = ("cfg", "count", "slots", "greedy", "dtype")
    return jax.jit(_generate, static_argnames=static, compiler_options=compiler_options())


def refilled(slots: int) -> int:
    """R: how many of so many slots are filled at a time."""
    return max(1, slots // 8)


def _generate(
    params: Params,
    shared: Array,
    prompts: Array,
    mask: Array,
    total: Array,
    eos: Array,
    pad: Array,
    sampling: Sampling,
    *,
    cfg: DecoderConfig,
    count: int,
    slots: int,
    greedy: bool,
    dtype: str,
) -> tuple[Array, Array]:
    """Tokens `[N, C]` and lengths `[N]` of the first `total` prompts.

    Args:
      params: of the decoder.
      shared: int32 `[Q]`, what all prompts begin with; Q may be 0.
      prompts: int32 `[N, P]`, what follows, left-padded; `mask`: bool, its real tokens; none: no
        prompt.
      total: int32 scalar, prompts that are there; the next R after them must be empty.
      eos: int32 `[E]`, tokens that end an answer; `pad`: fills behind it.
      sampling: how tokens are drawn; keys `[N]`, one a prompt.
      cfg, count, slots, greedy, dtype: static; C and B among them.
    """
    params = cast(params, jnp.dtype(dtype))
    head = decoder.head(params, cfg, Compute(dtype))
    number, ahead = len(prompts), len(shared)
    width = ahead + prompts.shape[1]
    fresh_slots = refilled(slots)
    before = beginning(params, shared, cfg, dtype)

    def pick(hidden: Array, steps: Array, owners: Array) -> Array:
        keys = None if sampling.keys is None else sampling.keys[owners]
        drawn = sampling._replace(keys=keys)
        return choose_tokens(decoder.logits(hidden, head), drawn, steps, greedy)

    def record(queue: _Queue, token: Array, rows: Array) -> _Queue:
        """Append `token` to the answers of the slots in `rows`, which may end by it."""
        owner = jnp.where(rows, queue.prompt, number)
        made = queue.made + rows
        ended = jnp.any(token[:, None] == eos[None, :], axis=1) | (made == count)
        return queue._replace(
            token=jnp.where(rows, token, queue.token),
            made=made,
            prompt=jnp.where(rows & ended, number, queue.prompt),
            tokens=queue.tokens.at[owner, queue.made].set(token, mode="drop"),
            lengths=queue.lengths.at[owner].set(made, mode="drop"),
        )

    def refill(queue: _Queue) -> _Queue:
        free = jnp.argsort(queue.prompt < number, stable=True)[:fresh_slots]
        take = queue.taken + jnp.arange(fresh_slots, dtype=jnp.int32)
        theirs, real = prompts[take], mask[take]
        hidden, keys, values = prefill(params, theirs, real, cfg, dtype, before)
        first = pick(hidden, jnp.zeros(fresh_slots, jnp.int32), take)
        queue = queue._replace(
            taken=queue.taken + fresh_slots,
            prompt=queue.prompt.at[free].set(jnp.where(real.any(axis=1), take, number)),
            made=queue.made.at[free].set(0),
            real=queue.real.at[free].set(ahead + jnp.sum(real, axis=1, dtype=jnp.int32)),
            keys=queue.keys.at[:, free, :, :, ahead:width].set(keys),
            values=queue.values.at[:, free, :, ahead:width].set(values),
        )
        rows = jnp.zeros(slots, bool).at[free].set(real.any(axis=1))
        return record(queue, jnp.zeros(slots, jnp.int32).at[free].set(first), rows)

    def advance(queue: _Queue) -> _Queue:
        rows = queue.prompt < number
        made = jnp.maximum(queue.made, 1)
        hidden, (keys, values) = decode(
            params,
            queue.token,
            width + made - 1,
            queue.real,
            width,
            (queue.keys, queue.values),
            cfg,
            dtype,
            ahead,
        )
        token = pick(hidden, queue.made, jnp.minimum(queue.prompt, number - 1))
        return record(queue._replace(keys=keys, values=values), token, rows)

    def busy(queue: _Queue) -> Array:
        running = jnp.sum(queue.prompt < number)
        enough = (slots - running < fresh_slots) | (queue.taken >= total)
        return enough & (running > 0)

    def some(queue: _Queue) -> _Queue:
        return jax.lax.while_loop(busy, advance, refill(queue))

    end = jax.lax.while_loop(
        lambda queue: queue.taken < total,
        some,
        _empty(cfg, jnp.dtype(dtype), slots, width, count, number, pad, before),
    )
    return end.tokens, end.lengths


def _empty(
    cfg: DecoderConfig,
    dtype: Any,
    slots: int,
    width: int,
    count: int,
    number: int,
    pad: Array,
    before: tuple[Array, Array] | None,
) -> _Queue:
    front, length = (cfg.layers, slots, cfg.kv_heads), width + count
    keys = jnp.zeros((*front, cfg.head_dim, length), dtype)
    values = jnp.zeros((*front, length, cfg.head_dim), dtype)
    if before is not None:
        ahead = before[0].shape[-1]
        keys = keys.at[..., :ahead].set(before[0])
        values = values.at[:, :, :, :ahead].set(before[1])
    return _Queue(
        taken=jnp.int32(0),
        prompt=jnp.full(slots, number, jnp.int32),
        made=jnp.zeros(slots, jnp.int32),
        token=jnp.zeros(slots, jnp.int32),
        real=jnp.zeros(slots, jnp.int32),
        keys=keys,
        values=values,
        tokens=jnp.full((number, count), pad, jnp.int32),
        lengths=jnp.zeros(number, jnp.int32),
    )
