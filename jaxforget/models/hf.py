"""Hugging Face folders, both ways: config.json and safetensors, never anything pickled."""

import json
import logging
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.models import families, hf_tables
from jaxforget.models.config import DecoderConfig, param_shapes
from jaxforget.models.tensor_files import (
    INDEX,
    SINGLE,
    TensorFolder,
    dtype_named,
    read_json,
    write_tensors,
    write_text,
)

log = logging.getLogger(__name__)

SHARD_BYTES = 5 * 10**9

type Names = dict[hf_tables.Entry, list[str]]


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
      UserError: no such folder or file, not JSON, or not a dictionary.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return read_json(folder / "config.json")


def read_hf(
    folder: str | pathlib.Path, *, dtype: str | None = None, check_finite: bool = True
) -> tuple[dict[str, Any], Params]:
    """Read a checkpoint folder strictly: every tensor has its place, every place its tensor.

    Args:
      folder: holds config.json and model.safetensors, whole or sharded with its index.
      dtype: "float32", "float16" or "bfloat16" for every leaf; None keeps the stored dtype.
      check_finite: refuse NaN and infinities in the weights.
    Returns:
      The content of config.json (of multimodal Gemma 3 its language model's) and the parameters
      as nested dictionary of numpy arrays, shaped as `config.param_shapes` says.
    Raises:
      UserError: a file is missing or damaged; a tensor is missing, unknown, of another shape than
        config.json says, quantised or not finite. The message names file and tensor.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder)
    try:
        cfg = families.from_hf(config)
    except UserError as error:
        raise UserError(f"{folder}/{error}") from None  # it begins with config.json
    wanted = dtype_named(dtype)
    with TensorFolder(folder, check_finite=check_finite) as tensors:
        if config["model_type"] == "gemma3":
            images = [name for name in tensors.path if re.search(hf_tables.IMAGES, name)]
            log.warning("%s: left out the image half (%d tensors)", folder, len(images))
            tensors.drop(images)
        names = _match(folder, tensors, cfg)
        flat: dict[str, np.ndarray] = {}
        for entry in hf_tables.entries(cfg):
            _fill(flat, entry, names[entry], tensors, cfg, wanted)
        _check_unknown(names, tensors, cfg, flat)
    return families.text_config(config), unflatten(flat)


def _match(folder: pathlib.Path, tensors: TensorFolder, cfg: DecoderConfig) -> Names:
    """Stored names of every entry's tensors, layer by layer."""
    names: Names = {}
    missing: list[str] = []
    for entry in hf_tables.entries(cfg):
        names[entry] = []
        for layer in range(cfg.layers if entry.stacked else 1):
            options = [name.format(layer) for name in hf_tables.spellings(entry, cfg)]
            present = [name for name in options if name in tensors.path]
            names[entry] += present[:1]
            missing += [] if present else options[:1]
    if missing:
        raise UserError(f"{folder}: missing from the weights: {_some(missing)}")
    return names


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}"


def _fill(
    flat: dict[str, np.ndarray],
    entry: hf_tables.Entry,
    names: list[str],
    tensors: TensorFolder,
    cfg: DecoderConfig,
    wanted: np.dtype | None,
) -> None:
    """Copy one entry's tensors into their stacked arrays, one tensor in memory at a time."""
    expected, shapes = hf_tables.stored_shape(entry, cfg), param_shapes(cfg)
    for layer, name in enumerate(names):
        tensor = tensors.read(name, expected)
        for leaf, part in zip(entry.paths, entry.form.unpack(tensor, cfg), strict=True):
            if layer == 0:
                flat[leaf] = np.empty(shapes[leaf], wanted or tensor.dtype)
            if wanted is None and tensor.dtype != flat[leaf].dtype:
                raise UserError(
                    f"{tensors.path[name]}: tensor {name} is {tensor.dtype}, in other layers "
                    f"{flat[leaf].dtype}; name one dtype to read all of them as"
                )
            (flat[leaf][layer] if entry.stacked else flat[leaf])[...] = part


def _check_unknown(
    names: Names, tensors: TensorFolder, cfg: DecoderConfig, flat: Mapping[str, np.ndarray]
) -> None:
    used = {name for group in names.values() for name in group}
    buffers = re.compile("|".join(hf_tables.BUFFERS))
    unknown = sorted(n for n in tensors.path if n not in used and not buffers.search(n))
    heads = [name for name in unknown if cfg.tied and name.endswith(hf_tables.HEAD_NAMES)]
    for name in heads:
        # some writers store a tied head as well: harmless while it is the embedding
        embedding = flat["embed/w"]
        head = tensors.read(name, embedding.shape).astype(embedding.dtype)
        if not np.array_equal(head, embedding):
            raise UserError(
                f"{tensors.path[name]}: tensor {name} differs from the embedding although "
                "config.json says tie_word_embeddings; set that to false to keep both"
            )
    unknown = [name for name in unknown if name not in heads]
    if unknown:
        raise UserError(
            f"{tensors.path[unknown[0]]}: {_some(unknown)} unknown to a {cfg.family} model as "
            f"config.json describes it ({cfg.layers} layers)"
        )


def write_hf(
    folder: str | pathlib.Path,
    config: Mapping[str, Any],
    cfg: DecoderConfig,
    params: Params,
    dtype: str | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Fill a folder with config.json and safetensors that transformers loads.

    Args:
      folder: empty or to be made; nothing in it is removed.
      config: as `read_hf` returned it; only its dtype is changed.
      cfg: the architecture, equal to what `config` says.
      params: nested dictionary of numpy or fully addressable jax arrays, without adapters.
      dtype: "float32", "float16" or "bfloat16" of the files; None keeps each leaf's own.
      shard_bytes: a file holds at most so many bytes of tensors, except for a larger tensor.
    Raises:
      UserError: leaves missing, unknown, of another shape or not finite as `dtype`; a file that
        cannot be written.
    """
    folder, flat, wanted = pathlib.Path(folder), flatten(params), dtype_named(dtype)
    _check_leaves(flat, cfg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error}") from error
    shards = _plan(flat, cfg, wanted, shard_bytes)
    files = [_file_name(index, len(shards)) for index in range(len(shards))]
    tensors = _stored(flat, cfg, wanted)
    for file, shard in zip(files, shards, strict=True):
        write_tensors(folder / file, {name: next(tensors) for name in shard})
    if len(shards) > 1:
        where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(sum(shard.values()) for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
    used = dtype or str(np.dtype(flat["embed/w"].dtype))
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    updated = {**config, **dict.fromkeys(keys, used)}
    write_text(folder / "config.json", json.dumps(updated, indent=2, sort_keys=True) + "\n")


def _check_leaves(flat: Mapping[str, Any], cfg: DecoderConfig) -> None:
    shapes = param_shapes(cfg)
    for path in sorted(set(flat) ^ set(shapes)):
        if "lora_" in path:
            raise UserError(f"parameter {path}: merge adapters into their weights before export")
        state = "unknown to" if path in flat else "missing for"
        raise UserError(f"parameter {path} is {state} a {cfg.family} model of this config")
    for path, shape in shapes.items():
        if tuple(flat[path].shape) != shape:
            raise UserError(
                f"parameter {path} has shape {list(flat[path].shape)}, config says {list(shape)}"
            )


def _plan(
    flat: Mapping[str, Any], cfg: DecoderConfig, wanted: np.dtype | None, limit: int
) -> list[dict[str, int]]:
    """Tensor names and bytes of every file, in writing order."""
    shards: list[dict[str, int]] = [{}]
    for entry in hf_tables.entries(cfg):
        item = (wanted or np.dtype(flat[entry.paths[0]].dtype)).itemsize
        size = math.prod(hf_tables.stored_shape(entry, cfg)) * item
        for layer in range(cfg.layers if entry.stacked else 1):
            if shards[-1] and sum(shards[-1].values()) + size > limit:
                shards.append({})
            shards[-1][hf_tables.full_name(entry, cfg).format(layer)] = size
    return shards


def _stored(
    flat: Mapping[str, Any], cfg: DecoderConfig, wanted: np.dtype | None
) -> Iterator[np.ndarray]:
    """Every tensor in writing order; one stacked leaf at a time is fetched from its device."""
    for entry in hf_tables.entries(cfg):
        leaves = [np.asarray(flat[path]) for path in entry.paths]
        for layer in range(cfg.layers if entry.stacked else 1):
            parts = [leaf[layer] for leaf in leaves] if entry.stacked else leaves
            tensor = entry.form.pack(parts, cfg)
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(tensor, wanted or tensor.dtype)
            if not np.isfinite(stored).all():
                name = hf_tables.full_name(entry, cfg).format(layer)
                raise UserError(
                    f"tensor {name} holds values that are NaN, infinite or too large for "
                    f"{stored.dtype}; nothing could read such a model"
                )
            yield stored


def _file_name(index: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
