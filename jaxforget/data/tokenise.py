"""Records to tokens, once: the boundary between prompt and answer is exact.

The whole text is tokenised with character offsets and the answer is located in it, because the
tokens of a prompt alone need not begin the tokens of prompt and answer. A token that straddles
the boundary belongs to the answer, and so do blanks before it, which are part of one answer's first
token and a token of their own before another: what is given must not tell which answer follows.

Special tokens: a chat template writes its own. Otherwise the beginning-of-sequence token is put
first where the tokenizer's convention says so (Llama and Gemma yes, GPT-2 and Qwen no), and the
end-of-sequence token is appended under `Template.end`. Control tokens spelt out in the data
become control tokens, as everywhere in transformers.

Plain text (a record with an empty prompt) is learned whole; where it is longer than `max_length`
it is cut into several examples of `max_length` instead of being truncated.
"""

import hashlib
import io
import logging
import pathlib
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from jaxforget.data.encode import Encoded, encode, starts_with_bos, tokenizer_identity, where
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet, check_vocabulary, fingerprint_of
from jaxforget.data.template import Template
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically

__all__ = [
    "Template",
    "TokenisedSet",
    "check_vocabulary",
    "chunk_text",
    "prompt_ids",
    "starts_with_bos",
    "tokenise",
    "tokenise_cached",
    "tokenizer_identity",
]

log = logging.getLogger(__name__)

_CACHE_FORMAT = "2"
_ARRAYS = ("tokens", "targets", "mask", "offsets", "rows")


def tokenise(
    records: Sequence[Record], tokenizer: Any, template: Template, *, max_length: int
) -> TokenisedSet:
    """Tokenise records and label their answers.

    Args:
      records: at least one.
      tokenizer: fast transformers tokenizer.
      template: see `Template`.
      max_length: most input tokens of one example, >= 1.
    Returns:
      The examples in order of the records, one each (several for long plain text). What follows
      the last target is left out. `truncated` counts the examples that were cut, which is also
      logged once as a warning.
    Raises:
      UserError: no records; an answer of which no target is left, by row and source; a slow
        tokenizer, or one without an end-of-sequence token where the template wants it.
    """
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []
    cut: list[Record] = []
    barren: list[Encoded] = []
    bos = tokenizer.bos_token_id if starts_with_bos(tokenizer) else None
    for item in encode(records, tokenizer, template):
        if item.record.prompt == "":
            if len(item.ids) < 2:
                raise UserError(f"{where(item.record)}: a single token leaves nothing to predict")
            for tokens, targets in chunk_text(item.ids, max_length, bos):
                pieces.append((tokens, targets, np.ones(len(tokens), bool), item.record.row))
            continue
        ids = item.ids[: max_length + 1]
        if len(ids) < len(item.ids):
            cut.append(item.record)
        if max(item.first, 1) >= len(ids):
            barren.append(item)
        mask = np.arange(1, len(ids)) >= item.first
        pieces.append((ids[:-1], ids[1:], mask, item.record.row))
    _refuse_barren(barren, max_length)
    arrays = {
        "tokens": np.concatenate([piece[0] for piece in pieces]),
        "targets": np.concatenate([piece[1] for piece in pieces]),
        "mask": np.concatenate([piece[2] for piece in pieces]),
        "offsets": np.cumsum([0, *(len(piece[0]) for piece in pieces)], dtype=np.int64),
        "rows": np.asarray([piece[3] for piece in pieces], np.int64),
    }
    mark = fingerprint_of(arrays, template.identity(), tokenizer_identity(tokenizer))
    _warn_truncated(len(cut), len(records), max_length, records[0].source)
    return TokenisedSet(**arrays, fingerprint=mark, truncated=len(cut))


def chunk_text(
    ids: np.ndarray, max_length: int, bos: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut a stream of ids into (inputs, targets), each of at most `max_length`.

    Every id but the first is a target exactly once. With `bos` (and `ids` beginning with it)
    every piece's inputs begin with it, as models trained with one need; without, a piece begins
    with the last target of the piece before.
    """
    pieces = []
    for start in range(0, len(ids) - 1, max_length):
        targets = ids[start + 1 : start + 1 + max_length]
        inputs = ids[start : start + len(targets)].copy()
        if bos is not None:
            inputs[0] = bos
        pieces.append((inputs, targets))
    return pieces


def prompt_ids(
    records: Sequence[Record], tokenizer: Any, template: Template, max_length: int
) -> list[np.ndarray]:
    """What a model is given before it writes each answer, exactly as in training.

    Args:
      records, tokenizer, template: as for `tokenise`.
      max_length: most tokens of a prompt.
    Returns:
      One int32 array a record: the tokens of the whole text before the first labelled one.
    Raises:
      UserError: as `tokenise`; a prompt that is longer than `max_length` or has no token.
    """
    encoded = list(encode(records, tokenizer, template))
    _refuse_barren([item for item in encoded if item.first > max_length], max_length)
    for item in encoded:
        if item.first == 0:
            raise UserError(f"{where(item.record)}: nothing to generate from, its prompt is empty")
    return [item.given for item in encoded]


def _refuse_barren(barren: Sequence[Encoded], max_length: int) -> None:
    if not barren:
        return
    worst, others = barren[0], len(barren) - 1
    raise UserError(
        f"{where(worst.record)}: no target is left within max_length {max_length}, its prompt "
        f"alone has {worst.first} tokens{f' (and {others} more rows)' if others else ''}; raise "
        "max_length or remove the row"
    )


def _warn_truncated(cut: int, count: int, max_length: int, source: str) -> None:
    if cut:
        log.warning("%s: %d of %d examples cut to max_length %d", source, cut, count, max_length)


def tokenise_cached(
    records: Sequence[Record],
    tokenizer: Any,
    template: Template,
    *,
    max_length: int,
    cache_dir: str | pathlib.Path,
) -> TokenisedSet:
    """`tokenise`, kept in `cache_dir` under a fingerprint of everything that decides the result.

    Args:
      records, tokenizer, template, max_length: as for `tokenise`.
      cache_dir: folder; made where missing. A damaged file is rebuilt, and a folder that cannot
        be written is done without; both are logged.
    """
    key = hashlib.sha256()
    versions = (version("transformers"), version("tokenizers"), _CACHE_FORMAT)
    head = (template.identity(), tokenizer_identity(tokenizer), str(max_length), *versions)
    fields = (item for r in records for item in (r.prompt, r.answer, r.source, str(r.row)))
    for part in (*head, *fields):
        data = part.encode()
        key.update(len(data).to_bytes(8) + data)
    file = pathlib.Path(cache_dir) / f"tokens-{key.hexdigest()[:32]}.npz"
    kept = _read_cache(file, template, tokenizer)
    if kept is not None:
        _warn_truncated(kept.truncated, len(records), max_length, records[0].source)
        return kept
    made = tokenise(records, tokenizer, template, max_length=max_length)
    buffer = io.BytesIO()
    arrays = {name: getattr(made, name) for name in _ARRAYS}
    np.savez(buffer, **arrays, truncated=made.truncated, fingerprint=made.fingerprint)
    try:
        write_atomically(file, buffer.getvalue())
    except OSError as error:
        log.warning("token cache %s not written: %s", file, error)
    return made


def _read_cache(file: pathlib.Path, template: Template, tokenizer: Any) -> TokenisedSet | None:
    if not file.exists():
        return None
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in _ARRAYS}
            mark, truncated = str(kept["fingerprint"]), int(kept["truncated"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("token cache %s is damaged (%s); made anew", file, error)
        return None
    if mark != fingerprint_of(arrays, template.identity(), tokenizer_identity(tokenizer)):
        log.warning("token cache %s does not hold what it says; made anew", file)
        return None
    return TokenisedSet(**arrays, fingerprint=mark, truncated=truncated)
