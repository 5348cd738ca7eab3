"""A decoder-only transformer as pure functions on a plain dictionary of parameters.

Layers are stacked on a leading axis and scanned, so that one compiled body serves all of them;
what differs between layers (window, rotary table) is scanned beside their weights.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.mesh import AXES
from jaxforget.engine.slots import slots_of
from jaxforget.engine.tree import Params, unflatten
from jaxforget.engine.types import Head, Push, Scores, Tiles, TokenBatch, TokenStats
from jaxforget.models import layers, tiled
from jaxforget.models.config import FEW_LAYERS, DecoderConfig, param_shapes
from jaxforget.models.inside import NOTHING, Inside, Look, run_layers
from jaxforget_kernels import linear_cross_entropy

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full")


@dataclass(frozen=True)
class Compute:
    """How to compute, as opposed to what.

    Attributes:
      dtype: of matrix products and the residual stream, "float32" or "bfloat16"; norms, softmax
        and log-probabilities are float32 always.
      remat: what the backward pass computes again: "none", "dots" (all but the projections'
        matrix products) or "full" (everything but each layer's input).
      unroll: layers are written out one after the other even where there are more than
        `FEW_LAYERS`, and the compiler may keep what `remat` would have computed again: derivatives
        of higher order then hold no stacked copies, and repeat less.
    """

    dtype: str = "float32"
    remat: str = "dots"
    unroll: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("dtype", DTYPES), ("remat", REMAT)):
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"compute.{name} {value!r}: {did_you_mean(str(value), allowed)}")


def init(key: Array, cfg: DecoderConfig, dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
    """Random parameters: normal matrices, neutral norms, zero biases.

    Args:
      key: from `jax.random.key`.
      cfg: the architecture.
      dtype: of every leaf.
    Returns:
      Nested dictionary; leaves under "layers" are stacked on axis 0.
    """
    neutral = 0.0 if cfg.norm == "rms_plus_one" else 1.0
    flat = {}
    for index, (path, shape) in enumerate(param_shapes(cfg).items()):
        leaf = path.rsplit("/", 1)[-1]
        if leaf == "scale":
            flat[path] = jnp.full(shape, neutral, dtype)
        elif leaf in ("b", "bias"):
            flat[path] = jnp.zeros(shape, dtype)
        else:
            noise = jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
            flat[path] = (cfg.init_std * noise).astype(dtype)
    return unflatten(flat)


def embed(
    params: Params, tokens: Array, positions: Array, cfg: DecoderConfig, dtype: jnp.dtype
) -> Array:
    """Token (and, for GPT-2, position) embeddings.

    Args:
      params: of the whole model.
      tokens, positions: int32 `[B, L]`.
      cfg: the architecture.
      dtype: of the result.
    Returns:
      `[B, L, D]`.
    """
    with jax.named_scope("embed"):
        x = params["embed"]["w"][tokens].astype(dtype)
        if cfg.learned_positions:
            x = x + params["embed"]["pos"][positions].astype(dtype)
        return x * jnp.asarray(cfg.embed_scale, dtype) if cfg.embed_scale != 1.0 else x


def hidden_states(
    params: Params,
    tokens: Array,
    segments: Array,
    positions: Array,
    cfg: DecoderConfig,
    compute: Compute = Compute(),
    *,
    until: Array | None = None,
    tiles: Tiles | None = None,
    at: Array | None = None,
    look: Look = NOTHING,
) -> tuple[Array, Inside]:
    """Residual stream behind the last layer and the final norm.

    Args:
      params: as from `init`, any floating dtype; cast to the compute dtype layer by layer.
      tokens: int32 `[B, L]`.
      segments: int32 `[B, L]`, 0 is padding; attention never crosses segments.
      positions: int32 `[B, L]`, restarting in every segment.
      cfg: the architecture.
      compute: dtype and rematerialisation.
      until, tiles: see `TokenBatch`.
      at: int32 `[B, T]`, the places of which states are wanted, none of them twice; None: all.
      look: what is wanted too of inner layers.
    Returns:
      (`[B, T, D]` in the compute dtype, what `look` asks for), T being L where all are wanted;
      finite but meaningless at padding. Where only the latter is used the layers behind cost
      nothing.
    Raises:
      UserError: no such layer.
    """
    x = _by_rows(embed(params, tokens, positions, cfg, jnp.dtype(compute.dtype)))
    tables = layers.rope_tables(positions, cfg)
    see, attend = _attention(positions, segments, until, tiles, at)
    everywhere = None if cfg.windowed else see()

    def body(
        x: Array, scanned: tuple[Params, dict[str, Array]], at: Array | None
    ) -> tuple[Array, tuple[Array | None, Array | None]]:
        layer, extra = scanned
        mask = everywhere
        if mask is None:
            mask = see(window=extra["window"])

        def core(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
            squares = jnp.square(v.astype(jnp.float32)).sum((-2, -1))
            return attend(q, k, v, mask, cfg, at), jnp.sqrt(squares + 1e-12)

        rope = layers.select_rope(tables, extra["rope"])
        x, norms, inner = layers.block(layer, x, rope, core, cfg, at)
        return _by_rows(x), (inner, norms)

    with jax.named_scope("layers"):
        stack = params["layers"], layers.layer_extras(cfg)
        written = compute.unroll or cfg.layers <= FEW_LAYERS
        remat = functools.partial(_remat, compute=compute, looped=not written)
        x, inside = run_layers(body, x, stack, cfg.layers, look, remat, at=at, unroll=written)
    with jax.named_scope("final_norm"):
        return layers.norm(x, params["final_norm"], cfg), inside


def _attention(
    positions: Array,
    segments: Array,
    until: Array | None,
    tiles: Tiles | None,
    some: Array | None,
) -> tuple[Callable[..., Any], Callable[..., Array]]:
    """What makes masks, and what attends under them: (q, k, v, mask, cfg, places that ask, which
    are `some` or, if None, all)."""
    number = None if some is None else _number_of(some, positions.shape[1])
    if tiles is None:
        see = functools.partial(layers.attention_mask, positions, segments, until=until)

        def attend(
            q: Array, k: Array, v: Array, mask: Array, cfg: DecoderConfig, at: Array | None
        ) -> Array:
            if at is None or number is None:
                return layers.attend(q, k, v, mask, cfg)
            every = layers.take(q, number)
            return layers.take(layers.attend(every, k, v, mask, cfg), at)

        return see, attend
    if until is not None:
        raise ValueError("attention in tiles goes by segments, not by places")

    few = None if some is None or number is None else tiled.asking(tiles, some, number)

    def attend_tiles(
        q: Array, k: Array, v: Array, mask: Any, cfg: DecoderConfig, at: Array | None
    ) -> Array:
        asking = tiles if at is None or few is None else few
        return tiled.attend_tiles(asking, q, k, v, mask, cfg)

    return functools.partial(tiled.tile_masks, tiles, positions, segments), attend_tiles


def _number_of(at: Array, length: int) -> Array:
    """The number of every place among those of its row in `at`, int32 `[B, length]`; else 0."""
    count = jnp.arange(at.shape[1], dtype=jnp.int32)
    return jax.vmap(lambda row: jnp.zeros(length, jnp.int32).at[row].set(count))(at)


def _by_rows(x: Array) -> Array:
    """Keep activations divided by rows under the mesh in use.

    Left alone the compiler spreads the width of the sharded embedding through the whole model and
    gathers activations instead of weights.
    """
    mesh, axes = jax.sharding.get_abstract_mesh(), AXES[:2]
    usable = set(axes) <= set(mesh.axis_names) and set(mesh.axis_types) == {AxisType.Auto}
    if not usable or x.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        return x
    return jax.lax.with_sharding_constraint(x, jax.P(axes))


def _remat(body, compute: Compute, looped: bool):
    if compute.remat == "none":
        return body
    policies = jax.checkpoint_policies
    # tangents and cotangents have no names: without the second, products with a Hessian would
    # compute the projections of the backward pass twice
    kept = policies.save_from_both_policies(
        policies.save_only_these_names(layers.PROJECTION), policies.dots_with_no_batch_dims_saveable
    )
    policy = {"dots": kept, "full": None}[compute.remat]
    # outside of a loop the compiler would merge what is computed again with what it repeats
    apart = not looped and not compute.unroll
    return jax.checkpoint(body, policy=policy, prevent_cse=apart)


def head(params: Params, cfg: DecoderConfig, compute: Compute = Compute()) -> Head:
    """The output projection: the model's own, or the embedding where they are tied.

    Args:
      params: of the whole model.
      cfg: the architecture.
      compute: its dtype is the dtype of the weight.
    """
    own = params.get("head", {})
    weight = own["w"] if "w" in own else params["embed"]["w"]
    bias = own.get("b")
    return Head(weight.astype(compute.dtype), bias, cfg.final_softcap)


def logits(hidden: Array, head: Head) -> Array:
    """Whole distributions, for generation and tests: float32 `[..., V]` from `[..., D]`."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    out = layers.matmul(rows, head.weight.astype(hidden.dtype).T, jnp.float32)
    if head.bias is not None:
        out = out + head.bias.astype(jnp.float32)[None, :]
    if head.softcap is not None:
        out = head.softcap * jnp.tanh(out / head.softcap)
    return out.reshape(*hidden.shape[:-1], -1)


def score(
    params: Params,
    batch: TokenBatch,
    cfg: DecoderConfig,
    compute: Compute = Compute(),
    *,
    stats: bool = False,
    residual: int | None = None,
    mlp_inner: int | None = None,
    push: Push | None = None,
    values: tuple[int, int] | None = None,
) -> Scores:
    """Log-probabilities of a batch's targets.

    Args:
      params: as from `init`.
      batch: packed rows; with `max_targets` only the labelled positions pass the head.
      cfg: the architecture.
      compute: dtype and rematerialisation.
      stats: also fill `Scores.stats`, without gradient.
      residual: also fill `Scores.residual` with the output of this layer.
      mlp_inner: also fill `Scores.mlp_inner` with the input of `mlp/down` of this layer.
      push: added to a layer's output, see `Push`.
      values: (first layers, first positions): also fill `Scores.values`.
    Returns:
      See `Scores`; `hidden` and `head` are always filled (nobody pays for what nobody reads).
    """
    rows = batch.tokens, batch.segments, batch.positions
    slots = slots_of(batch)
    hidden, inside = hidden_states(
        params,
        *rows,
        cfg,
        compute,
        until=batch.until,
        tiles=batch.tiles,
        at=slots,
        look=Look(residual, mlp_inner, push, values[0] if values else 0),
    )
    if values is not None:
        if batch.until is not None:
            raise ValueError("values are found by place: segments must be whole examples")
        found = _first_values(inside.values, batch, values[1])
        inside = inside._replace(values=found if slots is None else layers.take(found, slots))
    targets, mask, segments = batch.targets, batch.mask, batch.segments
    if slots is not None:
        columns = targets, mask, segments
        targets, mask, segments = (layers.take(column, slots) for column in columns)
        segments = jnp.where(mask != 0, segments, 0)
    output = head(params, cfg, compute)
    with jax.named_scope("head"):
        answer = linear_cross_entropy(
            hidden,
            output.weight,
            targets,
            bias=output.bias,
            softcap=output.softcap,
            stats=stats,
        )
    logp, about = answer if isinstance(answer, tuple) else (answer, None)
    return Scores(
        logp=jnp.where(mask != 0, logp, 0.0),
        mask=mask,
        segments=segments,
        example=batch.example,
        hidden=hidden,
        head=output,
        stats=None if about is None else TokenStats(*about),
        targets=targets,
        residual=inside.residual,
        mlp_inner=inside.mlp_inner,
        values=inside.values,
        totals=batch.totals,
    )


def _first_values(norms: Array | None, batch: TokenBatch, positions: int) -> Array:
    """For every token the norms at the first tokens of its segment: `[B, L, positions * layers]`.

    0 where the segment is shorter.
    """
    assert norms is not None
    length = batch.tokens.shape[1]
    start = jnp.arange(length)[None, :] - batch.positions
    found = []
    for position in range(positions):
        index = jnp.minimum(start + position, length - 1)
        same = jnp.take_along_axis(batch.segments, index, axis=1) == batch.segments
        there = same & (start + position < length) & (batch.segments > 0)
        picked = jnp.take_along_axis(norms, index[:, :, None], axis=1)
        found.append(jnp.where(there[:, :, None], picked, 0.0))
    return jnp.concatenate(found, axis=-1)


class Score(Protocol):
    """A `ScoreFn` with its options, see `score`."""

    def __call__(
        self,
        params: Params,
        batch: TokenBatch,
        *,
        stats: bool = False,
        residual: int | None = None,
        mlp_inner: int | None = None,
        push: Push | None = None,
        values: tuple[int, int] | None = None,
    ) -> Scores:
        """See `score`."""
        ...


@functools.lru_cache(maxsize=64)
def scorer(cfg: DecoderConfig, compute: Compute) -> Score:
    """`score` of one architecture: equal arguments give the very same function.

    It holds no parameters, so that compiled programs are shared and keep no model alive.
    """

    def bound(
        params: Params,
        batch: TokenBatch,
        *,
        stats: bool = False,
        residual: int | None = None,
        mlp_inner: int | None = None,
        push: Push | None = None,
        values: tuple[int, int] | None = None,
    ) -> Scores:
        return score(
            params,
            batch,
            cfg,
            compute,
            stats=stats,
            residual=residual,
            mlp_inner=mlp_inner,
            push=push,
            values=values,
        )

    return bound
