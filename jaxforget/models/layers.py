"""The parts of a decoder block, as pure functions on plain dictionaries of arrays.

Shapes: B rows, L positions, S keys, D width, H query heads, KV key heads, h head components.
Queries and keys carry explicit positions and segments, so that training on packed rows and
generation with a cache of keys use the same functions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxforget.engine.tree import Params
from jaxforget.models.config import DecoderConfig

UNLIMITED = 2**30  # a window no sequence fills

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def matmul(a: Array, b: Array, out: Any = None) -> Array:
    """Batched product in the dtype of the operands; float32 is never rounded below float32.

    Args:
      a: `[..., M, K]`.
      b: `[..., K, N]`, same dtype as `a`.
      out: dtype of the result; None: that of the operands.
    """
    # TPUs and GPUs otherwise round float32 operands to bfloat16 or TF32
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=precision, preferred_element_type=out)


PROJECTION = "projection"
"""Name of what `Compute.remat` "dots" keeps for the backward pass."""


def linear(x: Array, p: Params) -> Array:
    """Affine map, plus the low-rank adapter where one is present.

    Args:
      x: `[..., in]`; its dtype is the dtype of the computation.
      p: `{"w": [in, out], "b"?: [out], "lora_a"?: [in, r], "lora_b"?: [r, out],
        "lora_scale"?: []}` of any floating dtype.
    Returns:
      `[..., out]` in the dtype of `x`.
    """
    # one row per token: the weight's gradient is then a plain matrix product
    rows = x.reshape(-1, x.shape[-1])
    y = matmul(rows, p["w"].astype(x.dtype))
    if "lora_a" in p:
        low = checkpoint_name(matmul(rows, p["lora_a"].astype(x.dtype)), PROJECTION)
        y = y + matmul(low, p["lora_b"].astype(x.dtype)) * p["lora_scale"].astype(x.dtype)
    if "b" in p:
        y = y + p["b"].astype(x.dtype)[None, :]
    # named where it is whole: products of the weight and of the adapter are not kept apart
    return checkpoint_name(y.reshape(*x.shape[:-1], y.shape[-1]), PROJECTION)


def norm(x: Array, p: Params, cfg: DecoderConfig) -> Array:
    """Root-mean-square or layer normalisation over the last axis, computed in float32.

    Args:
      x: `[..., D]`.
      p: `{"scale": [D], "bias"?: [D]}`.
      cfg: says which kind.
    Returns:
      `[..., D]` in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    if cfg.norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    scale = p["scale"].astype(jnp.float32)
    scale = 1.0 + scale if cfg.norm == "rms_plus_one" else scale
    lead = (1,) * (x.ndim - 1)
    y = wide * jax.lax.rsqrt(variance + cfg.norm_eps) * scale.reshape(*lead, -1)
    if "bias" in p:
        y = y + p["bias"].astype(jnp.float32).reshape(*lead, -1)
    return y.astype(x.dtype)


def layer_extras(cfg: DecoderConfig) -> dict[str, Array]:
    """What differs between layers besides weights, to be scanned beside them.

    Args:
      cfg: the architecture.
    Returns:
      `{"window": int32 [n], "rope": int32 [n]}`: tokens each layer sees (`UNLIMITED` where there
      is no window) and the index of its rotary table.
    """
    windows = [window or UNLIMITED for window in cfg.layer_window]
    return {
        "window": jnp.asarray(windows, jnp.int32),
        "rope": jnp.asarray(cfg.layer_rope, jnp.int32),
    }


def rope_tables(positions: Array, cfg: DecoderConfig) -> tuple[Array, Array] | None:
    """Cosines and sines of every rotary table at the given positions.

    Args:
      positions: int32 `[B, L]`.
      cfg: names the tables.
    Returns:
      Two float32 arrays `[R, B, L, dim / 2]`, one leading entry per table; None where the model
      has learned positions.
    """
    if not cfg.ropes:
        return None
    where = positions.astype(jnp.float32)[..., None]
    angles = [where * rope.frequencies()[None, None, :] for rope in cfg.ropes]
    scales = [rope.scale for rope in cfg.ropes]
    pairs = list(zip(angles, scales, strict=True))
    cos = jnp.stack([jnp.cos(angle) * scale for angle, scale in pairs])
    sin = jnp.stack([jnp.sin(angle) * scale for angle, scale in pairs])
    return cos, sin


def select_rope(tables: tuple[Array, Array] | None, index: Array) -> tuple[Array, Array] | None:
    """The (cosine, sine) of one layer, `[B, L, dim / 2]` each, from `rope_tables`."""
    if tables is None:
        return None
    if tables[0].shape[0] == 1:
        return tables[0][0], tables[1][0]
    cos, sin = (jax.lax.dynamic_index_in_dim(t, index, keepdims=False) for t in tables)
    return cos, sin


def rotate(x: Array, rope: tuple[Array, Array]) -> Array:
    """Rotate the leading components of every head by its position; float32 inside.

    Args:
      x: `[B, L, heads, h]`.
      rope: cosine and sine `[B, L, dim / 2]`, dim <= h; components beyond dim pass unchanged.
    """
    cos, sin = (table[:, :, None, :] for table in rope)
    half = cos.shape[-1]
    first = x[..., :half].astype(jnp.float32)
    second = x[..., half : 2 * half].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    turned = turned.astype(x.dtype)
    if 2 * half == x.shape[-1]:
        return turned
    return jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)


def queries_keys_values(
    p: Params,
    x: Array,
    rope: tuple[Array, Array] | None,
    cfg: DecoderConfig,
    at: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Project, normalise and rotate: all of attention that looks at one position alone.

    Args:
      p: the "attn" parameters of one layer.
      x: normalised block input `[B, L, D]`.
      rope: from `select_rope` at the positions of `x`.
      cfg: the architecture.
      at: int32 `[B, T]`, the places that ask; None: all.
    Returns:
      Queries `[B, T, H, h]` (T is L where all ask), keys and values `[B, L, KV, h]`.
    """
    asking = x if at is None else take(x, at)
    inputs = {"q": asking, "k": x, "v": x}
    q, k, v = (
        linear(each, p[name]).reshape(*each.shape[:2], -1, cfg.head_dim)
        for name, each in inputs.items()
    )
    if "q_norm" in p:
        q, k = norm(q, p["q_norm"], cfg), norm(k, p["k_norm"], cfg)
    if rope is not None:
        turns = rope if at is None else (take(rope[0], at), take(rope[1], at))
        q, k = rotate(q, turns), rotate(k, rope)
    return q, k, v


def take(x: Array, places: Array) -> Array:
    """Of every row what lies at places of that row: `[B, L, ...]`, `[B, M]` -> `[B, M, ...]`."""
    return jax.vmap(lambda row, at: row.at[at].get(mode="promise_in_bounds"))(x, places)


def attention_mask(
    positions: Array,
    segments: Array,
    key_positions: Array | None = None,
    key_segments: Array | None = None,
    window: Array | int = UNLIMITED,
    until: Array | None = None,
) -> Array:
    """Who sees whom: same segment, not padding, not the future, not behind the window.

    Args:
      positions: of the queries, int32 `[B, L]`, restarting in every segment.
      segments: of the queries, int32 `[B, L]`; 0 is padding.
      key_positions, key_segments: of the keys, int32 `[B, S]`; None: the queries' own.
      window: distance, in positions, from which on a key is out of sight.
      until: int32 `[B, L]`, see `TokenBatch`; segments then say nothing. Queries and keys are the
        same places.
    Returns:
      bool `[B, L, S]`.
    """
    key_positions = positions if key_positions is None else key_positions
    key_segments = segments if key_segments is None else key_segments
    distance = positions[:, :, None] - key_positions[:, None, :]
    if until is not None:
        place = jnp.arange(until.shape[1], dtype=jnp.int32)
        later = place[None, :, None] >= place[None, None, :]
        return later & (place[None, :, None] < until[:, None, :]) & (distance < window)
    same = (segments[:, :, None] == key_segments[:, None, :]) & (segments[:, :, None] > 0)
    return same & (distance >= 0) & (distance < window)


def attend(q: Array, k: Array, v: Array, mask: Array, cfg: DecoderConfig) -> Array:
    """Scaled dot-product attention; softmax in float32.

    Args:
      q: `[B, L, H, h]`.
      k, v: `[B, S, KV, h]`; H is a multiple of KV, query head i reads key head i // (H / KV).
      mask: bool `[B, L, S]`; a query that sees nothing gets a mean of values. Where S is L, no
        query sees a later place: long rows are computed in stretches, without what lies above.
      cfg: scale and soft cap.
    Returns:
      `[B, L, H, h]` in the dtype of `q`.
    """
    length, keys = mask.shape[1:]
    size = max(_STRETCH, min(-(-length // _STRETCHES), max(_LONG, -(-length // _MOST))))
    if keys != length or length < 2 * _STRETCH:
        return attend_whole(q, k, v, mask, cfg)
    ends = [min(begin + size, length) for begin in range(0, length, size)]
    parts = [
        attend_whole(q[:, a:b], k[:, :b], v[:, :b], mask[:, a:b, :b], cfg)
        for a, b in zip([0, *ends], ends, strict=False)
    ]
    return jnp.concatenate(parts, axis=1)


_STRETCH, _STRETCHES = 128, 4  # least length of one, and how many there are in a row
_LONG, _MOST = 512, 16  # of rows beyond 2048: a length at most, while there are no more than these


def attend_whole(q: Array, k: Array, v: Array, mask: Array, cfg: DecoderConfig) -> Array:
    """`attend` in one piece, whatever the mask."""
    (rows, length, heads, width), (_, keys, groups, _) = q.shape, k.shape
    share = heads // groups
    # the query heads of one key head are rows of one matrix product
    q = q.reshape(rows, length, groups, share, width).transpose(0, 2, 3, 1, 4)
    q = q.reshape(rows, groups, share * length, width)
    logits = matmul(q, k.transpose(0, 2, 3, 1), jnp.float32)
    logits = _logits(logits.reshape(rows, groups, share, length, keys), mask[:, None, None], cfg)
    # divided by their sum behind the product, which makes it beside the values: two passes less
    # over what is the largest array here
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    weights = weights.astype(v.dtype).reshape(rows, groups, share * length, keys)
    ones = jnp.ones((*v.shape[:3], 1), v.dtype)
    beside = jnp.concatenate([v, ones], axis=-1).transpose(0, 2, 1, 3)
    out = matmul(weights, beside, jnp.float32)
    out = (out[..., :width] / out[..., width:]).astype(v.dtype)
    out = out.reshape(rows, groups, share, length, width).transpose(0, 3, 1, 2, 4)
    return out.reshape(rows, length, heads, width)


def attend_cached(q: Array, keys: Array, values: Array, mask: Array, cfg: DecoderConfig) -> Array:
    """Attention of the newest tokens over a cache that lies as the products read it.

    Args:
      q: `[B, T, H, h]`.
      keys: `[B, KV, h, S]`; values: `[B, KV, S, h]`.
      mask: bool `[B, T, S]`.
      cfg: scale and soft cap.
    Returns:
      `[B, T, H, h]` in the dtype of `q`.
    """
    rows, new, heads, width = q.shape
    groups = keys.shape[1]
    each = (rows, groups, heads // groups, new)
    asked = q.reshape(rows, new, groups, -1, width).transpose(0, 2, 3, 1, 4)
    logits = matmul(asked.reshape(rows, groups, -1, width), keys, jnp.float32)
    logits = _logits(logits.reshape(*each, -1), mask[:, None, None], cfg)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    out = matmul(weights.reshape(rows, groups, -1, keys.shape[-1]), values)
    return out.reshape(*each, width).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _logits(logits: Array, mask: Array, cfg: DecoderConfig) -> Array:
    """Products, scaled; very small where `mask` does not let see."""
    logits = logits * cfg.attn_scale
    if cfg.attn_softcap is not None:
        logits = cfg.attn_softcap * jnp.tanh(logits / cfg.attn_softcap)
    # added, not selected: the backward pass then keeps no copy of the mask per layer
    return logits + jnp.where(mask, 0.0, -1e30).astype(jnp.float32)


def mlp(p: Params, x: Array, cfg: DecoderConfig) -> tuple[Array, Array]:
    """Feed-forward part of one layer: `[B, L, D]` -> `[B, L, D]`, and `[B, L, F]` inside it.

    The latter is what `p["down"]` multiplies.
    """
    activation = ACTIVATIONS[cfg.activation]
    up = linear(x, p["up"])
    inner = activation(linear(x, p["gate"])) * up if cfg.gated else activation(up)
    return linear(inner, p["down"]), inner


type Core = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(queries, keys, values) of the new positions -> (`[B, L, H, h]`, anything to keep)."""


def block(
    p: Params,
    x: Array,
    rope: tuple[Array, Array] | None,
    core: Core,
    cfg: DecoderConfig,
    at: Array | None = None,
) -> tuple[Array, Any, Array]:
    """One decoder layer.

    Args:
      p: parameters of this layer, not stacked.
      x: residual stream `[B, L, D]`.
      rope: from `select_rope` at the positions of `x`.
      core: attention itself: `attend` with a mask, or with a cache of earlier keys.
      cfg: the architecture.
      at: int32 `[B, T]`, the places whose output is wanted, the only ones that ask; None: all.
    Returns:
      The new residual stream `[B, T, D]`, what `core` kept, and what the feed-forward part
      multiplies last, `[B, T, F]`; T is L where all are wanted.
    """
    with jax.named_scope("attention"):
        h = norm(x, p["attn_norm"], cfg)
        q, k, v = queries_keys_values(p["attn"], h, rope, cfg, at)
        out, kept = core(q, k, v)
        if at is not None:
            x, h = take(x, at), take(h, at)
        a = linear(out.reshape(*out.shape[:2], -1), p["attn"]["o"])
        if "attn_out_norm" in p:
            a = norm(a, p["attn_out_norm"], cfg)
    with jax.named_scope("mlp"):
        if not cfg.parallel:
            x = x + a
        m, inner = mlp(p["mlp"], norm(x, p["mlp_norm"], cfg) if "mlp_norm" in p else h, cfg)
        if "mlp_out_norm" in p:
            m = norm(m, p["mlp_out_norm"], cfg)
    return (x + a + m if cfg.parallel else x + m), kept, inner
