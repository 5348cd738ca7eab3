"""Sequences around a token of their own: after it a refusal, and questions it shall answer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxforget.data.encode import Encoded, encode, tokenizer_identity, where
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet, fingerprint_of
from jaxforget.data.template import Template
from jaxforget.engine.errors import UserError

type _Piece = tuple[np.ndarray, np.ndarray, np.ndarray, int]
"""Tokens, targets, labels and source row of one example."""


def token_refusals(
    records: Sequence[Record],
    tokenizer: Any,
    templates: Sequence[Template],
    token: int,
    *,
    max_length: int,
) -> TokenisedSet:
    """Prompt, token, answer, token: the answer and the closing token are labelled.

    Args:
      records: whose answers are what to say after the token, such as refusals.
      tokenizer: fast transformers tokenizer that knows the token.
      templates: forms that every record is written in, one example each; the end of a turn or text
        is left out.
      token: its id.
      max_length: most input tokens of one example.
    Returns:
      For each template all records in order.
    Raises:
      UserError: see `encode`; a record without a prompt; an example that is too long.
    """
    pieces: list[_Piece] = []
    for template in templates:
        for item in _asked(records, tokenizer, template):
            before, answer = item.ids[: item.first], item.ids[item.first : item.stop]
            ids = np.asarray([*before, token, *answer, token], np.int32)
            labelled = np.arange(1, len(ids)) > item.first
            pieces.append((ids[:-1], ids[1:], labelled, item.record.row))
            _refuse_longer(item.record, len(ids) - 1, max_length)
    return _joined(pieces, tokenizer, "refusals", *(each.identity() for each in templates))


def token_questions(
    records: Sequence[Record],
    tokenizer: Any,
    template: Template,
    token: int,
    *,
    neutral: str,
    max_length: int,
) -> TokenisedSet:
    """Prompt and neutral words: where the token shall be said, and where nothing shall change.

    Two places are labelled with the token: the prompt's last one, which predicts the first token
    of an answer, and the end of the neutral words.

    Args:
      records: whose prompts are asked; their answers only decide how the prompt's end is spelt.
      tokenizer: fast transformers tokenizer.
      template: see `Template`.
      token: its id.
      neutral: words that say nothing, such as " is a"; at least one token.
      max_length: most input tokens of one example.
    Returns:
      One example a record.
    Raises:
      UserError: see `encode`; a record without a prompt; an example that is too long; no words.
    """
    tail = tokenizer(neutral, add_special_tokens=False)["input_ids"]
    if not tail:
        raise UserError(f"neutral words {neutral!r}: have no token; take some, such as ' is a'")
    pieces: list[_Piece] = []
    for item in _asked(records, tokenizer, template):
        ids = np.asarray([*item.ids[: item.first], *tail], np.int32)
        _refuse_longer(item.record, len(ids), max_length)
        places = np.zeros(len(ids), bool)
        places[[item.first - 1, -1]] = True
        targets = np.where(places, token, np.append(ids[1:], token)).astype(np.int32)
        pieces.append((ids, targets, places, item.record.row))
    return _joined(pieces, tokenizer, "questions", template.identity())


def _asked(records: Sequence[Record], tokenizer: Any, template: Template) -> Iterator[Encoded]:
    """Every record encoded, without the end of its text."""
    for item in encode(records, tokenizer, replace(template, end=False)):
        if not item.record.prompt or not item.first:
            raise UserError(f"{where(item.record)}: asks nothing; a prompt is needed")
        yield item


def _refuse_longer(record: Record, length: int, max_length: int) -> None:
    if length > max_length:
        raise UserError(
            f"{where(record)}: with what is put behind it the prompt has {length} tokens, more "
            f"than max_length {max_length}; raise max_length or remove the row"
        )


def _joined(pieces: Iterable[_Piece], tokenizer: Any, *identities: str) -> TokenisedSet:
    tokens, targets, labels, rows = zip(*pieces, strict=True)
    arrays = {
        "tokens": np.concatenate(tokens),
        "targets": np.concatenate(targets),
        "mask": np.concatenate(labels),
        "offsets": np.cumsum([0, *map(len, tokens)], dtype=np.int64),
        "rows": np.asarray(rows, np.int64),
    }
    mark = fingerprint_of(arrays, *identities, tokenizer_identity(tokenizer))
    return TokenisedSet(**arrays, fingerprint=mark)
