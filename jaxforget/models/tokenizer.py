"""Tokenizers of model folders: reading them, and checking that they fit the embedding."""

import logging
import pathlib
from typing import Any

from jaxforget.engine.errors import UserError
from jaxforget.models.config import DecoderConfig

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def read_tokenizer(folder: pathlib.Path) -> Any:
    """The tokenizer of a model folder; none of the folder's code is run.

    Args:
      folder: of a Hugging Face checkpoint.
    Returns:
      A transformers tokenizer, or None where the folder has no tokenizer files.
    Raises:
      UserError: the files are damaged or of a kind transformers does not know.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        log.warning("%s: no tokenizer files; the model is loaded without", folder)
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # parsers of several libraries, each with exceptions of its own
        raise UserError(f"{folder}: its tokenizer cannot be read: {error}") from error
    for habit in ("is_local", "local_files_only"):
        # of this process, not of the tokenizer: an export would otherwise carry it along
        tokenizer.init_kwargs.pop(habit, None)
    return tokenizer


def check_tokenizer(tokenizer: Any, cfg: DecoderConfig, what: str) -> None:
    """Refuse a tokenizer whose ids the embedding lacks.

    Added tokens other than those that begin, end and pad may lie beyond, with a warning: Gemma 3
    marks images so, and plain text never becomes them.

    Args:
      tokenizer: of transformers, or None.
      cfg: the architecture.
      what: the tokenizer in words, for the message.
    Raises:
      UserError: names the largest id.
    """
    if tokenizer is None or len(tokenizer) <= cfg.vocab_size:
        return
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= cfg.vocab_size}
    added = set(tokenizer.added_tokens_decoder)
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if any(i not in added or i in used for i in beyond):
        worst = max(beyond)
        raise UserError(
            f"{what} has ids up to {worst} ({beyond[worst]!r}), the embedding has "
            f"{cfg.vocab_size} rows; use the tokenizer the model was trained with"
        )
    log.warning("%s has tokens the embedding lacks: %s", what, ", ".join(beyond.values()))
