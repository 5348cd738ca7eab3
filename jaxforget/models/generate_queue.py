"""Generation of many answers in one compiled program: a slot that is done takes the next prompt.

A batch that waits for its longest answer computes mostly rows that have ended; here at most an
eighth of the slots idles while prompts wait, and the last answers are finished in an eighth of the
slots. A prompt's answer does not depend on which slot it meets.

What all prompts begin with, such as a system prompt or worked examples, is computed once. Prompts,
and what is known of their answers, are run `CHUNK` places at a time, those alone that hold a token.

Shapes: N prompts, B slots, R of them filled at a time, Q tokens that all prompts begin with, C most
new tokens, K places for the rest of a prompt and its answer, a multiple of `CHUNK`, S = Q + K
places of the cache.
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
from jaxforget.models.generate_loop import beginning, cast, extend
from jaxforget.models.sampling import Sampling, choose_tokens

CHUNK = 32  # lengths are rounded up to it, so that few programs are compiled


class _Queue(NamedTuple):
    taken: Array  # prompts handed out
    prompt: Array  # [B], of each slot; N where it has none
    made: Array  # [B], tokens of its answer
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
    known: Array,
    prompt_counts: Array,
    begun: Array,
    begun_counts: Array,
    total: Array,
    eos: Array,
    sampling: Sampling,
    *,
    cfg: DecoderConfig,
    count: int,
    slots: int,
    greedy: bool,
    dtype: str,
) -> tuple[Array, Array]:
    """Tokens `[N, C]` and lengths `[N]` of the first `total` prompts' answers.

    Args:
      params: of the decoder.
      shared: int32 `[Q]`, what all prompts begin with; Q may be 0.
      known: int32 `[N, K]`, what follows of each prompt, and behind it what its answer begins with.
      prompt_counts: int32 `[N]`, tokens of the former; 0: no prompt.
      begun: int32 `[N, C]`, the latter alone, filled up with what fills all answers.
      begun_counts: int32 `[N]`, its tokens, below C.
      total: int32 scalar, prompts that are there; the next R after them must be none.
      eos: int32 `[E]`, tokens that end an answer.
      sampling: how tokens are drawn; keys `[N]`, one a prompt.
      cfg, count, slots, greedy, dtype: static; C and B among them.
    """
    params = cast(params, jnp.dtype(dtype))
    head = decoder.head(params, cfg, Compute(dtype))
    number, ahead = len(known), len(shared)
    width = ahead + known.shape[1]
    fresh_slots = refilled(slots)
    before = beginning(params, shared, cfg, dtype)

    def run(tokens: Array, slot: Array, caches: tuple[Array, Array]) -> Any:
        """`extend`: what a place holds is what it is numbered, nothing is padded on the left."""
        full = jnp.full(len(tokens), width, jnp.int32)
        return extend(params, tokens, slot, full, width, caches, cfg, dtype, ahead)

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
        theirs, there, made = known[take], prompt_counts[take] > 0, begun_counts[take]
        newest = prompt_counts[take] + made - 1  # is run by `advance`, which wants what follows it

        def chunk(at: Array, caches: tuple[Array, Array]) -> tuple[Array, Array]:
            tokens = jax.lax.dynamic_slice_in_dim(theirs, at * CHUNK, CHUNK, axis=1)
            return run(tokens, ahead + at * CHUNK, caches)[1]

        caches = queue.keys[:, free], queue.values[:, free]
        keys, values = jax.lax.fori_loop(0, -(-newest.max() // CHUNK), chunk, caches)
        return queue._replace(
            taken=queue.taken + fresh_slots,
            prompt=queue.prompt.at[free].set(jnp.where(there, take, number)),
            made=queue.made.at[free].set(made),
            token=queue.token.at[free].set(theirs[jnp.arange(fresh_slots), newest]),
            real=queue.real.at[free].set(ahead + prompt_counts[take]),
            keys=queue.keys.at[:, free].set(keys),
            values=queue.values.at[:, free].set(values),
        )

    def advance(queue: _Queue) -> _Queue:
        running = queue.prompt < number
        # the others write, too: where the next prompt overwrites it, and attention need not reach
        slot = jnp.where(running, queue.real + queue.made - 1, ahead)
        hidden, (keys, values) = run(queue.token[:, None], slot, (queue.keys, queue.values))
        token = pick(hidden[:, 0], queue.made, jnp.minimum(queue.prompt, number - 1))
        return record(queue._replace(keys=keys, values=values), token, running)

    def running(queue: _Queue) -> Array:
        return jnp.sum(queue.prompt < number)

    def busy(queue: _Queue) -> Array:
        now = running(queue)
        filled = slots - now < fresh_slots
        return jnp.where(queue.taken < total, filled, now > fresh_slots) & (now > 0)

    def some(queue: _Queue) -> _Queue:
        return jax.lax.while_loop(busy, advance, refill(queue))

    queue = jax.lax.while_loop(
        lambda queue: queue.taken < total,
        some,
        _empty(cfg, jnp.dtype(dtype), slots, width, begun, begun_counts, before),
    )
    # the last answers, which may be long ones, do not keep all slots computing
    end = jax.lax.while_loop(
        lambda queue: running(queue) > 0, advance, _last(queue, fresh_slots, number)
    )
    return end.tokens, end.lengths


def _last(queue: _Queue, slots: int, number: int) -> _Queue:
    """The slots that are running, which are `slots` at most, without the others."""
    kept = jnp.argsort(queue.prompt >= number, stable=True)[:slots]
    return queue._replace(
        prompt=queue.prompt[kept],
        made=queue.made[kept],
        token=queue.token[kept],
        real=queue.real[kept],
        keys=queue.keys[:, kept],
        values=queue.values[:, kept],
    )


def _empty(
    cfg: DecoderConfig,
    dtype: Any,
    slots: int,
    length: int,
    begun: Array,
    begun_counts: Array,
    before: tuple[Array, Array] | None,
) -> _Queue:
    front = (cfg.layers, slots, cfg.kv_heads)
    keys = jnp.zeros((*front, cfg.head_dim, length), dtype)
    values = jnp.zeros((*front, length, cfg.head_dim), dtype)
    if before is not None:
        ahead = before[0].shape[-1]
        keys = keys.at[..., :ahead].set(before[0])
        values = values.at[:, :, :, :ahead].set(before[1])
    return _Queue(
        taken=jnp.int32(0),
        prompt=jnp.full(slots, len(begun), jnp.int32),
        made=jnp.zeros(slots, jnp.int32),
        token=jnp.zeros(slots, jnp.int32),
        real=jnp.zeros(slots, jnp.int32),
        keys=keys,
        values=values,
        tokens=begun,
        lengths=begun_counts,
    )
