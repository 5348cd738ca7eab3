"""Attention in tiles: every token against its own example, and against nothing else of its row."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.types import Tiles
from jaxforget.models import layers
from jaxforget.models.config import DecoderConfig

type Masks = tuple[Array, ...]


def tile_masks(
    tiles: Tiles,
    positions: Array,
    segments: Array,
    *,
    window: Array | int = layers.UNLIMITED,
) -> Masks:
    """Who sees whom in every tile; see `layers.attention_mask`.

    Args:
      tiles: of the rows.
      positions, segments: int32 `[B, L]`.
      window: distance, in positions, from which on a key is out of sight.
    Returns:
      By kind, bool `[B * N_j, Q_j, K_j]`.
    """
    masks = []
    for queries, keys in zip(tiles.queries, tiles.keys, strict=True):
        (asked, seen), (p, s) = _taken(positions, queries, keys), _taken(segments, queries, keys)
        distance = asked[..., :, None] - seen[..., None, :]
        same = (p[..., :, None] == s[..., None, :]) & (p[..., :, None] > 0)
        mask = same & (keys >= 0)[..., None, :] & (distance >= 0) & (distance < window)
        masks.append(mask.reshape(-1, *mask.shape[2:]))
    return tuple(masks)


def attend_tiles(
    tiles: Tiles, q: Array, k: Array, v: Array, masks: Masks, cfg: DecoderConfig
) -> Array:
    """`layers.attend`, tile by tile.

    Args:
      tiles: of the rows.
      q: `[B, L, H, h]`; or `[B, T, H, h]`, see `asking`.
      k, v: `[B, L, KV, h]`.
      masks: from `tile_masks`.
      cfg: scale and soft cap.
    Returns:
      As `q`, in its dtype; at padding anything finite.
    """
    asked = _cut(q, tiles.queries)
    pairs = zip(_cut(k, tiles.keys), _cut(v, tiles.keys), strict=True)
    found = [
        layers.attend_whole(each, *pair, mask, cfg)
        for each, pair, mask in zip(asked, pairs, masks, strict=True)
    ]
    flat = [each.reshape(q.shape[0], -1, *q.shape[2:]) for each in found]
    return layers.take(jnp.concatenate(flat, axis=1), tiles.back)


def asking(tiles: Tiles, at: Array, number: Array) -> Tiles:
    """Tiles whose queries, and whose results, are those of some places of the rows alone.

    Args:
      tiles: of the rows.
      at: int32 `[B, T]`, these places.
      number: int32 `[B, L]`, a place's index in `at`; of the others anything in range, since nobody
        reads what they find.
    Returns:
      Tiles for queries `[B, T, H, h]`; masks are those of `tiles`.
    """

    def renumbered(places: Array) -> Array:
        flat = jnp.maximum(places, 0).reshape(places.shape[0], -1)
        return layers.take(number, flat).reshape(places.shape)

    return Tiles(
        queries=tuple(renumbered(each) for each in tiles.queries),
        keys=tiles.keys,
        back=layers.take(tiles.back, at),
    )


def _cut(x: Array, kinds: tuple[Array, ...]) -> list[Array]:
    """`[B, L, ...]` -> by kind `[B * N_j, P_j, ...]`; all at once, which has one transpose."""
    places = [each.reshape(each.shape[0], -1) for each in kinds]
    whole = layers.take(x, jnp.maximum(jnp.concatenate(places, axis=1), 0))
    parts = jax.lax.split(whole, [each.shape[1] for each in places], axis=1)
    return [
        part.reshape(-1, each.shape[-1], *x.shape[2:])
        for part, each in zip(parts, kinds, strict=True)
    ]


def _taken(x: Array, queries: Array, keys: Array) -> tuple[Array, Array]:
    """`[B, L]` at the queries and keys of one kind of tile, in their shapes."""
    both: Any = tuple(
        layers.take(x, jnp.maximum(places, 0).reshape(x.shape[0], -1)).reshape(places.shape)
        for places in (queries, keys)
    )
    return both
