"""Tokenizers from GGUF metadata: byte-level BPE (GPT-2's kind) and SentencePiece BPE (Llama's)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.models.gguf_config import Metadata

log = logging.getLogger(__name__)

SPACE = "\u2581"  # how SentencePiece writes a space

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Splitting:
    """How a byte-level tokenizer cuts text before merging.

    Attributes:
      pattern: regular expression of the pieces; None: GPT-2's.
      digits: every digit stands alone.
      nfc: text is normalised to composed characters first.
      whole: a piece that is a token needs no merges (Llama 3).
      bos: a beginning-of-sequence token is put first unless the file says otherwise.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole: bool = False
    bos: bool = False


GPT2 = Splitting()
NEOX = Splitting(nfc=True)
SMOLLM = Splitting(digits=True)
QWEN2 = Splitting(rf"{_CONTRACTIONS}|\p{{N}}{_SPACES}", nfc=True)
LLAMA3 = Splitting(rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}{_SPACES}", whole=True, bos=True)
# values of tokenizer.ggml.pre
SPLITTINGS = {
    "gpt-2": GPT2,
    "phi-2": GPT2,
    "olmo": NEOX,
    "mpt": NEOX,
    "smollm": SMOLLM,
    "starcoder": SMOLLM,
    "qwen2": QWEN2,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
}
# older files say "default" or nothing: then the architecture decides where it leaves no doubt
BY_ARCHITECTURE = {
    "gpt2": GPT2,
    "gptneox": NEOX,
    "phi2": GPT2,
    "qwen2": QWEN2,
    "qwen3": QWEN2,
}


class Kind(IntEnum):
    """tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def tokenizer(meta: Metadata) -> Any:
    """The tokenizer of a GGUF file.

    Args:
      meta: of the file.
    Returns:
      Fast transformers tokenizer with the same ids; None where the file has no tokenizer.
    Raises:
      UserError: an unsupported kind of tokenizer or pre-tokenizer, or incomplete metadata.
    """
    kind = meta.values.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        log.info("%s holds no tokenizer", meta.path)
        return None
    if kind not in BUILDERS:
        raise UserError(
            f"{meta.path}: tokenizer.ggml.model {kind!r}. {did_you_mean(str(kind), BUILDERS)}"
        )
    backend, bos_first = BUILDERS[kind](meta)
    tokens = _tokens(meta)
    _add_marked(backend, meta, tokens)
    named = _named(meta, tokens)
    _frame(backend, meta, named, bos_first)
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=meta.values.get("tokenizer.chat_template"),
        model_max_length=meta.own("context_length"),
        clean_up_tokenization_spaces=False,
        **named,
    )


def _tokens(meta: Metadata) -> list[str]:
    return _array(meta, "tokens")


def _array(meta: Metadata, key: str) -> list[Any]:
    values = meta.values.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{meta.path}: metadata key tokenizer.ggml.{key} is missing or empty")
    return values


def _named(meta: Metadata, tokens: Sequence[str]) -> dict[str, str]:
    """Text of the tokens with a role: bos_token, eos_token, pad_token, unk_token."""
    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    named = {}
    for role, key in roles.items():
        token = meta.values.get(f"tokenizer.ggml.{key}_token_id")
        if token is None:
            continue
        if not 0 <= token < len(tokens):
            raise UserError(
                f"{meta.path}: tokenizer.ggml.{key}_token_id {token} is outside the vocabulary "
                f"of {len(tokens)} tokens"
            )
        named[f"{role}_token"] = tokens[token]
    return named


def _add_marked(backend: Any, meta: Metadata, tokens: Sequence[str]) -> None:
    """Control tokens are special; user-defined ones are found in text but not hidden from it."""
    from tokenizers import AddedToken

    types = meta.values.get("tokenizer.ggml.token_type") or [Kind.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(
            f"{meta.path}: tokenizer.ggml.token_type has {len(types)} entries for "
            f"{len(tokens)} tokens"
        )
    marked = []
    for token, kind in zip(tokens, types, strict=True):
        if kind in (Kind.CONTROL, Kind.USER_DEFINED):
            special = kind == Kind.CONTROL
            marked.append(AddedToken(token, special=special, normalized=False))
    backend.add_tokens(marked)


def _frame(backend: Any, meta: Metadata, named: Mapping[str, str], bos_first: bool) -> None:
    """Put the beginning and end tokens where the file asks for them."""
    from tokenizers import processors

    flags = {"bos": bos_first, "eos": False}
    pieces = {}
    for role, default in flags.items():
        asked = meta.values.get(f"tokenizer.ggml.add_{role}_token", default)
        pieces[role] = named.get(f"{role}_token") if asked else None
    used = [piece for piece in pieces.values() if piece is not None]
    if used:
        single = [piece for piece in (pieces["bos"], "$A", pieces["eos"]) if piece is not None]
        pair = [*single, *(f"{piece}:1" if piece != "$A" else "$B:1" for piece in single)]
        backend.post_processor = processors.TemplateProcessing(
            single=single,
            pair=pair,
            special_tokens=[(piece, backend.token_to_id(piece)) for piece in dict.fromkeys(used)],
        )


def _byte_level(meta: Metadata) -> tuple[Any, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    splitting = _splitting(meta)
    vocab = {token: index for index, token in enumerate(_tokens(meta))}
    merges = [tuple(merge.split(" ", 1)) for merge in _array(meta, "merges")]
    try:
        model = models.BPE(vocab, merges, ignore_merges=splitting.whole)
    except Exception as error:  # tokenizers raises Exception itself
        raise UserError(f"{meta.path}: tokenizer.ggml.merges do not fit: {error}") from None
    backend = Tokenizer(model)
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if splitting.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), "isolated"))
    whole = splitting.pattern is not None
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not whole))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend, splitting.bos


def _splitting(meta: Metadata) -> Splitting:
    name = meta.values.get("tokenizer.ggml.pre", "default")
    if name in SPLITTINGS:
        return SPLITTINGS[name]
    if name == "default" and meta.arch in BY_ARCHITECTURE:
        return BY_ARCHITECTURE[meta.arch]
    raise UserError(
        f"{meta.path}: tokenizer.ggml.pre {name!r} of a {meta.arch} model does not say how text is "
        f"split. {did_you_mean(str(name), SPLITTINGS)}"
    )


def _sentence_piece(meta: Metadata) -> tuple[Any, bool]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = _tokens(meta), _array(meta, "scores")
    if len(scores) != len(tokens):
        raise UserError(
            f"{meta.path}: tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = meta.values.get("tokenizer.ggml.unknown_token_id")
    backend = Tokenizer(
        models.BPE(
            vocab,
            _merges(vocab, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    undo: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if meta.values.get("tokenizer.ggml.add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        undo.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence(undo)
    return backend, True


def _merges(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, best score first: SentencePiece's order."""
    found = []
    for token, index in vocab.items():
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocab and token[cut:] in vocab
        ]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(-scores[index], pair) for pair in pairs]
    found.sort(key=lambda item: item[0])  # stable: equal scores keep the order of ids
    return [pair for _, pair in found]


BUILDERS = {"gpt2": _byte_level, "llama": _sentence_piece}
