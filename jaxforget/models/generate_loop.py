"""Generation as one compiled program: prefill, then a loop over a cache of keys and values.

Rows are padded on the left, so that all rows write slot P + t - 1 at step t. Positions count real
tokens only; padded slots are never seen. Keys lie as `[n, B, KV, h, S]` and values as
`[n, B, KV, S, h]`, so that no step has to turn the cache round before its products.

Shapes: B rows, P prompt slots (what all prompts begin with in the first), N new tokens, S = P + N
slots, n layers, KV key heads, h components.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.models import decoder, layers
from jaxforget.models.config import DecoderConfig
from jaxforget.models.decoder import Compute
from jaxforget.models.sampling import Sampling, choose_tokens

_REACH = 64  # attention reads so many slots, or twice as many, or ..: as far as any is written
CAST = frozenset({"w", "b", "lora_a", "lora_b", "lora_scale"})  # what `layers.linear` casts


class _Loop(NamedTuple):
    step: Array
    token: Array  # [B], the newest
    done: Array  # [B]
    keys: Array  # [n, B, KV, h, S]
    values: Array  # [n, B, KV, S, h]
    tokens: Array  # [B, N]
    lengths: Array  # [B]


@functools.cache
def program() -> Any:
    """The jitted `_generate`, compiled once for every combination of shapes and static options."""
    # made at the first call: asking for compiler options wakes the backend
    static = ("cfg", "count", "greedy", "dtype")
    return jax.jit(_generate, static_argnames=static, compiler_options=compiler_options())


def _generate(
    params: Params,
    shared: Array,
    prompts: Array,
    mask: Array,
    begun: Array,
    eos: Array,
    pad: Array,
    sampling: Sampling,
    *,
    cfg: DecoderConfig,
    count: int,
    greedy: bool,
    dtype: str,
) -> tuple[Array, Array]:
    """New tokens `[B, N]` and their numbers `[B]`; `begun` `[B]` of N are in prompts already."""
    params = cast(params, jnp.dtype(dtype))
    head = decoder.head(params, cfg, Compute(dtype))
    ahead = len(shared)
    rows, width = prompts.shape[0], ahead + prompts.shape[1]
    before = beginning(params, shared, cfg, dtype)
    lengths = ahead + jnp.sum(mask, axis=1, dtype=jnp.int32)

    def choose(hidden: Array, step: Array) -> Array:
        return choose_tokens(decoder.logits(hidden, head), sampling, begun + step, greedy)

    hidden, keys, values = prefill(params, prompts, mask, cfg, dtype, before)
    if before is not None:
        keys = jax.vmap(lambda one, own: _behind(one, own, axis=-1))(before[0], keys)
        values = jax.vmap(lambda one, own: _behind(one, own, axis=-2))(before[1], values)
    none, room, limits = ((0, 0),) * 3, (0, count), count - begun
    first = choose(hidden, jnp.int32(0))
    start = _record(
        _Loop(
            step=jnp.int32(0),
            token=first,
            done=~jnp.any(mask, axis=1),
            keys=jnp.pad(keys, (*none, (0, 0), room)),
            values=jnp.pad(values, (*none, room, (0, 0))),
            tokens=jnp.full((rows, count), pad, jnp.int32),
            lengths=jnp.zeros(rows, jnp.int32),
        ),
        eos,
        limits,
    )

    def running(loop: _Loop) -> Array:
        return (loop.step < count) & jnp.any(~loop.done)

    def advance(loop: _Loop) -> _Loop:
        slot = width + loop.step - 1  # of the newest token
        caches = loop.keys, loop.values
        newest = loop.token[:, None]
        hidden, (keys, values) = extend(
            params, newest, slot, lengths, width, caches, cfg, dtype, ahead
        )
        token = choose(hidden[:, 0], loop.step)
        return _record(loop._replace(token=token, keys=keys, values=values), eos, limits)

    end = jax.lax.while_loop(running, advance, start)
    return end.tokens, end.lengths


def _record(loop: _Loop, eos: Array, limits: Array) -> _Loop:
    """Append the newest token to the rows that have not ended; a row ends at its limit, `[B]`."""
    column = jax.lax.dynamic_index_in_dim(loop.tokens, loop.step, axis=1, keepdims=False)
    column = jnp.where(loop.done, column, loop.token)
    ended = jnp.any(loop.token[:, None] == eos[None, :], axis=1)
    return loop._replace(
        step=loop.step + 1,
        tokens=jax.lax.dynamic_update_index_in_dim(loop.tokens, column, loop.step, axis=1),
        lengths=loop.lengths + jnp.where(loop.done, 0, 1),
        done=loop.done | ended | (loop.step + 1 >= limits),
    )


def cast(params: Params, dtype: jnp.dtype) -> Params:
    """Cast what `layers.linear` would cast at every step, once; norms stay as they are."""
    flat = flatten(params)
    for path, leaf in flat.items():
        if path.startswith("layers/") and path.rsplit("/", 1)[-1] in CAST:
            flat[path] = leaf.astype(dtype)
    return unflatten(flat)


def positions_of(lengths: Array, width: int, slots: int, shared: int = 0) -> Array:
    """Position of every slot, int32 `[B, slots]`; -1 where there is no token.

    Args:
      lengths: int32 `[B]`, tokens of each prompt, the shared ones included.
      width: the slot at which prompts end.
      slots: S.
      shared: tokens that all prompts begin with, in the first slots; padding comes behind them.
    """
    slot = jnp.arange(slots, dtype=jnp.int32)[None, :]
    own = slot - (width - lengths)[:, None]
    return jnp.where(slot < shared, slot, jnp.where(own >= shared, own, -1))


def beginning(
    params: Params, shared: Array, cfg: DecoderConfig, dtype: str
) -> tuple[Array, Array] | None:
    """Keys and values of what all prompts begin with, int32 `[C]`, for `prefill`; None for none."""
    if not len(shared):
        return None
    return prefill(params, shared[None], jnp.ones((1, len(shared)), bool), cfg, dtype)[1:]


def prefill(
    params: Params,
    prompts: Array,
    mask: Array,
    cfg: DecoderConfig,
    dtype: str,
    before: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Run prompts.

    Args:
      params: cast, see `cast`.
      prompts: int32 `[B, P]`, left-padded; mask: bool, their real tokens.
      cfg, dtype: architecture and dtype of the computation.
      before: keys `[n, 1, KV, h, C]` and values `[n, 1, KV, C, h]` of what stands before all.
    Returns:
      State of the last slot `[B, D]`, and keys and values of the prompts as the cache holds them.
    """
    shared = 0 if before is None else before[0].shape[-1]
    width = shared + prompts.shape[1]
    lengths = shared + jnp.sum(mask, axis=1, dtype=jnp.int32)
    positions = positions_of(lengths, width, width, shared)
    here = jnp.maximum(positions[:, shared:], 0)
    x = decoder.embed(params, prompts, here, cfg, jnp.dtype(dtype))
    tables = layers.rope_tables(here, cfg)
    segments = (positions >= 0).astype(jnp.int32)

    def body(x: Array, scanned: Any) -> tuple[Array, Any]:
        layer, extra, past = scanned
        sees = layers.attention_mask(
            here, segments[:, shared:], positions, segments, window=extra["window"]
        )

        def core(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            kept = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
            if past is not None:
                k = _behind(past[0].transpose(0, 3, 1, 2), k)
                v = _behind(past[1].transpose(0, 2, 1, 3), v)
            return layers.attend(q, k, v, sees, cfg), kept

        rope = layers.select_rope(tables, extra["rope"])
        return layers.block(layer, x, rope, core, cfg)[:2]

    scanned = params["layers"], layers.layer_extras(cfg), before
    x, (keys, values) = jax.lax.scan(body, x, scanned)
    return layers.norm(x[:, -1], params["final_norm"], cfg), keys, values


def _behind(first: Array, then: Array, axis: int = 1) -> Array:
    """`then` `[B, .., P, ..]` behind `first` `[1, .., C, ..]` in every row, along `axis`."""
    every = jnp.broadcast_to(first, (len(then), *first.shape[1:]))
    return jnp.concatenate([every, then], axis=axis)


def extend(
    params: Params,
    tokens: Array,
    slot: Array,
    lengths: Array,
    width: int,
    caches: tuple[Array, Array],
    cfg: DecoderConfig,
    dtype: str,
    shared: int = 0,
) -> tuple[Array, tuple[Array, Array]]:
    """Run the newest tokens behind what a cache holds.

    Args:
      params: cast, see `cast`.
      tokens: int32 `[B, T]`, the newest of each row.
      slot: where the keys and values of the first of them are written, the others behind it: int32
        scalar, or `[B]` where rows differ and T is 1.
      lengths, width, shared: see `positions_of`.
      caches: keys `[n, B, KV, h, S]` and values `[n, B, KV, S, h]`.
      cfg, dtype: architecture and dtype of the computation.
    Returns:
      (states of the newest tokens `[B, T, D]`, caches with them).
    """
    slots = caches[0].shape[-1]
    positions = positions_of(lengths, width, slots, shared)[:, None]
    first = jnp.broadcast_to(slot, lengths.shape)[:, None]
    places = first + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    here = jnp.take_along_axis(positions[:, 0], places, axis=1)
    x = decoder.embed(params, tokens, jnp.maximum(here, 0), cfg, jnp.dtype(dtype))
    tables = layers.rope_tables(jnp.maximum(here, 0), cfg)
    # a condition in every layer pays on a CPU, which reads the whole cache; elsewhere unmeasured
    finely = _REACH if jax.default_backend() == "cpu" else slots
    level = jnp.max(places) // finely
    within = [_attends(min(end + finely, slots), cfg) for end in range(0, slots, finely)]
    here = here[..., None]

    def body(carry: tuple[Array, Array, Array], scanned: Any) -> tuple[Any, None]:
        x, keys, values = carry
        layer, extra, index = scanned
        sees = (positions >= 0) & (positions <= here) & (here - positions < extra["window"])

        def core(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            # written into the carried cache: scanned-over caches would be copied at every step
            k_all, v_all = _keys_written(keys, k, index, slot), _written(values, v, index, slot)
            out = jax.lax.switch(level, within, q, k_all, v_all, index, sees)
            return out, (k_all, v_all)

        rope = layers.select_rope(tables, extra["rope"])
        x, (keys, values), _ = layers.block(layer, x, rope, core, cfg)
        return (x, keys, values), None

    indices = jnp.arange(cfg.layers, dtype=jnp.int32)
    scanned = (params["layers"], layers.layer_extras(cfg), indices)
    (x, keys, values), _ = jax.lax.scan(body, (x, *caches), scanned)
    return layers.norm(x, params["final_norm"], cfg), (keys, values)


def _attends(reach: int, cfg: DecoderConfig) -> Any:
    """Attention that reads the first `reach` slots of a layer; no query sees what is behind."""

    def attend(q: Array, keys: Array, values: Array, layer: Array, sees: Array) -> Array:
        first = keys[layer, ..., :reach], values[layer, ..., :reach, :]
        return layers.attend_cached(q, *first, sees[..., :reach], cfg)

    return attend


def _written(cache: Array, new: Array, layer: Array, slot: Array) -> Array:
    """Values with `new` `[B, T, KV, h]` in one layer, from one slot on or (T 1) one a row."""
    zero = jnp.int32(0)
    if slot.ndim == 0:
        turned = new.transpose(0, 2, 1, 3)[None]
        return jax.lax.dynamic_update_slice(cache, turned, (layer, zero, zero, slot, zero))
    rows = jnp.arange(cache.shape[1], dtype=jnp.int32)
    return cache.at[layer, rows, :, slot].set(new[:, 0], unique_indices=True)


def _keys_written(cache: Array, new: Array, layer: Array, slot: Array) -> Array:
    """Keys with `new` `[B, T, KV, h]` in one layer, from one slot on or (T 1) one a row."""
    zero = jnp.int32(0)
    if slot.ndim == 0:
        turned = new.transpose(0, 2, 3, 1)[None]
        return jax.lax.dynamic_update_slice(cache, turned, (layer, zero, zero, zero, slot))
    rows = jnp.arange(cache.shape[1], dtype=jnp.int32)
    return cache.at[layer, rows, :, :, slot].set(new[:, 0], unique_indices=True)
