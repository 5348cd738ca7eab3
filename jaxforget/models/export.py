"""Model folders written whole or not at all."""

import fnmatch
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.models import hf
from jaxforget.models.config import DecoderConfig
from jaxforget.models.lora import merge_lora
from jaxforget.models.tensor_files import write_text

# what a model folder holds and its successor may therefore replace
OURS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)


def save_folder(
    folder: str | pathlib.Path,
    params: Params,
    cfg: DecoderConfig,
    hf_config: Mapping[str, Any],
    tokenizer: Any,
    *,
    generation_config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> None:
    """Write a Hugging Face model folder beside its place, then rename it there.

    Args:
      folder: its place. A model folder already there is replaced, and only when the new one is
        complete and flushed to disk; another folder that is not empty is refused.
      params: numpy or fully addressable jax arrays; adapters are merged into their weights.
      cfg: the architecture.
      hf_config: content of config.json; only its dtype is changed.
      tokenizer: of transformers, or None.
      generation_config: content of generation_config.json, or None.
      dtype: "float32", "float16" or "bfloat16"; None keeps each leaf's own.
    Raises:
      UserError: something else is there, or a file cannot be written. What was there before is
        as it was, and nothing half-written stays.
    """
    place = pathlib.Path(folder).expanduser().resolve()
    part, old = (place.with_name(f".{place.name}.{end}") for end in ("part", "old"))
    try:
        _recover(place, part, old)
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {error}") from error
    try:
        hf.write_hf(part, hf_config, cfg, merge_lora(params), dtype)
        if generation_config is not None:
            text = json.dumps(dict(generation_config), indent=2, sort_keys=True)
            write_text(part / "generation_config.json", text + "\n")
        if tokenizer is not None:
            _write_tokenizer(part, tokenizer)
        _flush(part)
        _exchange(place, part, old)
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_tokenizer(folder: pathlib.Path, tokenizer: Any) -> None:
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # the tokenizers library raises bare exceptions on a full disk
        raise UserError(f"{folder}: the tokenizer cannot be written: {error}") from error


def _recover(place: pathlib.Path, part: pathlib.Path, old: pathlib.Path) -> None:
    """Tidy up after a process that was killed here, and refuse to replace what is not ours."""
    if old.exists() and not place.exists():
        old.rename(place)
    for left in (part, old):
        if left.exists():
            shutil.rmtree(left)
    if not place.exists():
        return
    if not place.is_dir():
        raise UserError(f"{place}: is a file; a model needs a folder")
    foreign = [
        path.name
        for path in sorted(place.iterdir())
        if not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in OURS)
    ]
    if foreign:
        raise UserError(
            f"{place}: holds {foreign[0]}, which is no part of a model and would be lost; choose "
            "another folder"
        )


def _flush(folder: pathlib.Path) -> None:
    """Have everything readable and on disk before the rename says that it is complete."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(0o644)  # safetensors makes its files the owner's alone
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _exchange(place: pathlib.Path, part: pathlib.Path, old: pathlib.Path) -> None:
    if not place.exists():
        part.rename(place)
        return
    place.rename(old)
    try:
        part.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
