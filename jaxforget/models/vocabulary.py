"""New tokens: in the tokenizer, the embedding, the output head and config.json at once."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten, unflatten
from jaxforget.models.config import DecoderConfig
from jaxforget.models.language_model import LanguageModel


def with_tokens(lm: LanguageModel, texts: Sequence[str]) -> tuple[LanguageModel, tuple[int, ...]]:
    """A model that knows further tokens, each a special token that is never split or normalised.

    A new token takes the tokenizer's next id. Where the embedding has a spare row for it, that row
    is overwritten, otherwise embedding and head grow. The row is the mean of the old embedding's;
    a head of its own begins with the same vector, a head's bias with the mean of the old one.

    Args:
      lm: with a tokenizer; it stays as it is.
      texts: how the tokens are spelt; at least one, none of them known.
    Returns:
      (the model, the tokens' ids in order).
    Raises:
      UserError: no tokenizer, blank text, or a token that the tokenizer has already.
    """
    if lm.tokenizer is None:
        raise UserError("a new token needs the model's tokenizer; add its tokenizer.json")
    tokenizer = copy.deepcopy(lm.tokenizer)
    ids = tuple(_added(tokenizer, text) for text in texts)
    size = max(lm.config.vocab_size, *(token + 1 for token in ids))
    flat = flatten(lm.params)
    start = jnp.asarray(flat["embed/w"]).astype(jnp.float32).mean(axis=0)
    for path in ("embed/w", "head/w", "head/b"):
        if path in flat:
            leaf = jnp.asarray(flat[path])
            row = leaf.astype(jnp.float32).mean() if path == "head/b" else start
            flat[path] = _grown(leaf, row, size, ids)
    config: DecoderConfig = dataclasses.replace(lm.config, vocab_size=size)
    grown = dataclasses.replace(
        lm,
        params=unflatten(flat),
        config=config,
        hf_config={**lm.hf_config, "vocab_size": size},
        tokenizer=tokenizer,
    )
    return grown, ids


def _added(tokenizer: Any, text: str) -> int:
    from tokenizers import AddedToken

    if not text or text != text.strip():
        raise UserError(f"token {text!r}: must not be blank, nor begin or end with white space")
    if text in tokenizer.get_vocab():
        raise UserError(
            f"token {text!r}: the tokenizer has it already (id "
            f"{tokenizer.convert_tokens_to_ids(text)}); choose another spelling"
        )
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False)])
    return int(tokenizer.convert_tokens_to_ids(text))


def _grown(leaf: Array, row: Array, size: int, ids: tuple[int, ...]) -> Array:
    """`[V, ...]` with `size` rows, those new to it and those of `ids` being `row`."""
    row = row.astype(leaf.dtype)
    new = jnp.broadcast_to(row, (size - leaf.shape[0], *leaf.shape[1:]))
    return jnp.concatenate([leaf, new]).at[jnp.asarray(ids)].set(row)
