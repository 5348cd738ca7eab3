"""One text to ids, with the first token of its answer located exactly by character offsets."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxforget.data.records import Record
from jaxforget.data.template import Rendered, Template, is_chat, renderer
from jaxforget.engine.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """Ids of one record up to its last target; `ids[first:]` are the answer's targets.

    Of these `ids[first:stop]` hold the answer's text, the others end it. `alone` are the ids of
    the prompt by itself, under the template's `peer_compat`.
    """

    record: Record
    ids: np.ndarray
    first: int
    stop: int
    alone: Sequence[int] | None = None

    @property
    def given(self) -> np.ndarray:
        """What a model is given to write the answer itself, int32."""
        return self.ids[: self.first] if self.alone is None else np.asarray(self.alone, np.int32)


def starts_with_bos(tokenizer: Any) -> bool:
    """Does this tokenizer's convention put a beginning-of-sequence token before plain text?"""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    asked = bool(getattr(tokenizer, "add_bos_token", False))
    return asked or tokenizer("a")["input_ids"][:1] == [bos]


def tokenizer_identity(tokenizer: Any) -> str:
    """SHA-256 of all that decides a tokenizer's ids: vocabulary, merges, rules, chat template."""
    # padding and truncation settings, which change with use, stand before this key
    _, _, rules = _backend(tokenizer).to_str().partition('"added_tokens"')
    specials = (tokenizer.bos_token, tokenizer.eos_token, starts_with_bos(tokenizer))
    text = f"{rules}\n{specials}\n{getattr(tokenizer, 'chat_template', None)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _backend(tokenizer: Any) -> Any:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer "
            "(tokenizer.json) is needed"
        )
    return tokenizer.backend_tokenizer


def encode(records: Sequence[Record], tokenizer: Any, template: Template) -> Iterator[Encoded]:
    """Tokenise every record once and locate its answer.

    Args:
      records: at least one.
      tokenizer: fast transformers tokenizer.
      template: see `Template`.
    Returns:
      One item a record, in order, not truncated.
    Raises:
      UserError: no records; no token left of an answer; a slow tokenizer, or one without an
        end-of-sequence token where the template wants it.
    """
    if not records:
        raise UserError("there are no records to tokenise")
    _backend(tokenizer)
    render = renderer(template, tokenizer)
    texts = [render(record) for record in records]
    batch = _tokenised(tokenizer, [text.text for text in texts])
    apart: Sequence[Sequence[int] | None] = [None] * len(texts)
    if template.peer_compat:
        prompts = [text.text[: text.start] for text in texts]
        apart = _tokenised(tokenizer, prompts)["input_ids"]
    special = _special_ids(tokenizer)
    bos = tokenizer.bos_token_id if starts_with_bos(tokenizer) else None
    eos = tokenizer.eos_token_id
    for record, text, ids, spans, prompt in zip(
        records, texts, batch["input_ids"], batch["offset_mapping"], apart, strict=True
    ):
        text = _with_leading_blanks(text)
        first, stop = _locate(spans, text.start, text.stop)
        if first == stop:
            raise UserError(f"{where(record)}: no token is left of the answer {record.answer!r}")
        if first > 0 and _reaches_over(text, spans[first - 1], ids[first - 1], tokenizer):
            first -= 1
        if prompt is not None:
            first, stop = len(prompt), max(stop, len(prompt))
        if is_chat(template, record):
            # the turn's end is a target; what stands between must be written to reach it
            ends = (at for at in range(stop, len(ids)) if ids[at] in special)
            end = next(ends, stop - 1) + 1
            yield Encoded(record, np.asarray(ids[:end], np.int32), first, stop, prompt)
            continue
        ids = ids[:stop]
        if bos is not None and ids[0] != bos:
            ids, first, stop = [bos, *ids], first + 1, stop + 1
            prompt = None if prompt is None else [bos, *prompt]
        if template.end and ids[-1] != eos:
            if eos is None:
                raise UserError(
                    "this tokenizer has no end-of-sequence token; set template.end=false"
                )
            ids = [*ids, eos]
        yield Encoded(record, np.asarray(ids, np.int32), first, stop, prompt)


def _tokenised(tokenizer: Any, texts: Sequence[str]) -> Any:
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )


def _with_leading_blanks(text: Rendered) -> Rendered:
    """Blanks before an answer count as its own: what is given to a model must not depend on it.

    They are part of the first token of one answer and a token of their own before another.
    """
    return text._replace(start=len(text.text[: text.start].rstrip(" ")))


def _locate(spans: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """Indices (first, one past the last) of the tokens that overlap `start:stop`.

    Byte-level tokenizers may trim white space off a span, even to nothing, so a token reaches
    back to where the one before ended; the bytes of one character share a span.
    """
    first = last = None
    reach = 0
    for index, (begin, end) in enumerate(spans):
        if end > start and min(begin, reach) < stop:
            first, last = (index if first is None else first), index
        reach = max(reach, end)
    return (0, 0) if first is None or last is None else (first, last + 1)


def _reaches_over(text: Rendered, span: tuple[int, int], token: int, tokenizer: Any) -> bool:
    """Does the token before the answer hold white space of it, trimmed off the token's span?

    Happens where an answer begins with a space that merges with the characters before it.
    """
    begin, end = span
    if not text.text[text.start].isspace() or begin == end or text.text[end - 1].isspace():
        return False
    spelt = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return end + len(spelt) - len(spelt.rstrip()) > text.start


def _special_ids(tokenizer: Any) -> set[int]:
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(at for at, token in added.items() if token.special)}


def where(record: Record) -> str:
    """A record's place, for messages."""
    return f"row {record.row} of {record.source}"
