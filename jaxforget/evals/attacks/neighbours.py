"""Texts that differ from a given one in a few tokens, each replaced by one that means alike."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError

_ROWS = 256  # tokens whose neighbours are looked for at a time


@dataclasses.dataclass(frozen=True)
class Neighbourhood:
    """Every example of a set, and its variants.

    Attributes:
      tokenised: K + 1 times the set, one after the other: itself, then every variant of all.
      edited: float64 `[K, n]`, share of each variant's targets that are not the example's.
      rank: int64 `[K]`, how near the tokens are that a variant takes: 1 is the nearest.
    """

    tokenised: TokenisedSet
    edited: np.ndarray
    rank: np.ndarray


def nearest_tokens(lm: Any, ids: np.ndarray, count: int) -> np.ndarray:
    """The tokens nearest to some, by the cosine of the model's input embeddings.

    Special tokens are nobody's neighbours, and neither are tokens whose text is the same but for
    spaces around it.

    Args:
      lm: `LanguageModel` with a tokenizer.
      ids: int `[m]`.
      count: of neighbours, >= 1.
    Returns:
      int32 `[m, count]`, nearest first.
    Raises:
      UserError: a vocabulary of too few tokens.
    """
    table = jnp.asarray(lm.params["embed"]["w"], jnp.float32)
    table = table / jnp.maximum(jnp.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    known = min(len(lm.tokenizer), len(table))
    texts = [text.strip() for text in lm.tokenizer.batch_decode([[i] for i in range(known)])]
    same = np.full(len(table), -1, np.int64)  # tokens of one text share a number
    same[:known] = np.unique(texts, return_inverse=True)[1]
    same[[i for i in lm.tokenizer.all_special_ids if i < len(table)]] = -1
    if len(np.unique(same[same >= 0])) <= count:
        raise UserError(f"remind: the vocabulary has no {count} neighbours for a token")
    found = [np.zeros((0, count), np.int32)]
    for part in np.split(ids, range(_ROWS, len(ids), _ROWS)):
        allowed = (same[None, :] >= 0) & (same[part][:, None] != same[None, :])
        near = jnp.where(allowed, table[part] @ table.T, -jnp.inf)
        found.append(np.asarray(jax.lax.top_k(near, count)[1], np.int32))
    return np.concatenate(found)


def neighbourhood(
    lm: Any,
    tokenised: TokenisedSet,
    *,
    variants: int,
    rate: float,
    nearest: int,
    seed: int,
    keep: bool = False,
) -> Neighbourhood:
    """Variants of every example.

    Variant k replaces each token, with probability `rate`, by its r-th nearest neighbour,
    r = 1 + k mod `nearest`; in the input and, where it is labelled, as a target. The first token of
    an example and special tokens stay.

    Args:
      lm: `LanguageModel` with a tokenizer; see `nearest_tokens`.
      tokenised: n examples, without columns.
      variants: K >= 1, of each example.
      rate: in [0, 1].
      nearest: farthest neighbour taken, >= 1.
      seed: of the draws.
      keep: labelled targets stay as they are, and only what the model reads changes.
    """
    ids, place = np.unique(tokenised.targets, return_inverse=True)
    near = nearest_tokens(lm, ids, nearest)[place]  # [N, nearest]
    special = np.isin(tokenised.targets, lm.tokenizer.all_special_ids)
    rng = np.random.default_rng(seed)
    chosen = (rng.random((variants, len(special))) < rate) & ~special
    rank = 1 + np.arange(variants, dtype=np.int64) % nearest
    edits = np.where(chosen, near[:, rank - 1].T, tokenised.targets)
    return Neighbourhood(
        _texts(tokenised, np.concatenate([tokenised.targets[None], edits]), keep),
        np.add.reduceat(chosen, tokenised.offsets[:-1], axis=1) / tokenised.lengths,
        rank,
    )


def _texts(tokenised: TokenisedSet, targets: np.ndarray, keep: bool) -> TokenisedSet:
    """The set once for each row of targets `[R, N]`, whose inputs follow from them."""
    tokens = np.roll(targets, 1, axis=1)
    firsts = tokenised.offsets[:-1]
    tokens[:, firsts] = tokenised.tokens[firsts]
    if keep:
        targets = np.where(tokenised.mask, tokenised.targets, targets)
    copies = len(targets)
    starts = np.arange(copies)[:, None] * tokenised.offsets[-1] + tokenised.offsets[None, 1:]
    return dataclasses.replace(
        tokenised,
        tokens=tokens.reshape(-1).astype(np.int32),
        targets=targets.reshape(-1).astype(np.int32),
        mask=np.tile(tokenised.mask, copies),
        offsets=np.concatenate([np.zeros(1, np.int64), starts.reshape(-1)]),
        rows=np.tile(tokenised.rows, copies),
        fingerprint=f"{tokenised.fingerprint} and its variants",
        columns={},
        entities=None,
    )
