"""Hugging Face folders, both ways: config.json and safetensors, never anything pickled."""

import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, unflatten
from jaxforget.models import config as config_module
from jaxforget.models import families, hf_tables
from jaxforget.models.config import DecoderConfig, param_shapes

log = logging.getLogger(__name__)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def dtype_named(name: str | None) -> np.dtype | None:
    """numpy dtype of "float32", "float16" or "bfloat16"; None stays None.

    Raises:
      UserError: any other name.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: allowed: {', '.join(DTYPES)}")
    return DTYPES[name]


def read_hf(
    folder: str | pathlib.Path, *, dtype: str | None = None, check_finite: bool = True
) -> tuple[dict[str, Any], Params]:
    """Read a checkpoint folder strictly: every tensor has its place, every place its tensor.

    Args:
      folder: holds config.json and model.safetensors, whole or sharded with its index.
      dtype: "float32", "float16" or "bfloat16" for every leaf; None keeps the stored dtype.
      check_finite: look for NaN and infinities in the weights.
    Returns:
      The content of config.json (for multimodal Gemma 3 that of its language model) and the
      parameters as nested dictionary of numpy arrays, stacked as in `config.param_shapes`.
    Raises:
      UserError: a file is missing or damaged, a tensor is missing, unknown, of another shape than
        config.json says, quantised, or not finite. The message names file and tensor.
    """
    folder = pathlib.Path(folder)
    original = read_config(folder)
    cfg = config_module.from_hf(original)
    files = _files(folder)
    if original["model_type"] == "gemma3":
        images = [name for name in files if re.search(hf_tables.IMAGES, name)]
        log.warning("%s: leaving out the image half of Gemma 3 (%d tensors)", folder, len(images))
        files = {name: file for name, file in files.items() if name not in set(images)}
    wanted = dtype_named(dtype)
    with _Reader(check_finite) as reader:
        found, unknown = _match(folder, files, cfg)
        flat: dict[str, np.ndarray] = {}
        shapes = param_shapes(cfg)
        for entry in hf_tables.entries(cfg):
            names = found[entry]
            _fill(flat, entry, [(files[name], name) for name in names], cfg, shapes, wanted, reader)
        _check_unknown(folder, unknown, files, cfg, flat, reader)
    return families.text_config(original), unflatten(flat)


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
      UserError: no such folder or file, not JSON, or not a dictionary.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    path = folder / "config.json"
    config = _json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: must hold a dictionary, got {type(config).__name__}")
    return config


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name of every stored tensor -> the file that holds it."""
    index, single = folder / INDEX, folder / SINGLE
    if single.is_file():
        paths = [single]
    elif index.is_file():
        content = _json(index)
        listed = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(listed, dict):
            raise UserError(f"{index}: has no weight_map")
        # only plain names: an index must not lead out of its folder
        paths = sorted({folder / pathlib.Path(str(name)).name for name in listed.values()})
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        hint = f" ({', '.join(pickled)}: pickled weights are never opened)" if pickled else ""
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}{hint}")
    files: dict[str, pathlib.Path] = {}
    for path in paths:
        with _Reader(False) as reader:
            files.update(dict.fromkeys(reader.open(path).keys(), path))
    if not single.is_file():
        for name in sorted(set(_json(index)["weight_map"]) - set(files)):
            raise UserError(f"{index}: lists tensor {name}, which none of its files holds")
    return files


class _Reader:
    """Keeps one safetensors file open at a time."""

    def __init__(self, check_finite: bool):
        self._check_finite = check_finite
        self._path: pathlib.Path | None = None
        self._file: Any = None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.__exit__(None, None, None)
        self._file, self._path = None, None

    def open(self, path: pathlib.Path) -> Any:
        import safetensors

        if path != self._path:
            self._close()
            if not path.is_file():
                raise UserError(f"{path}: no such file, though {INDEX} names it")
            try:
                self._file = safetensors.safe_open(str(path), framework="numpy").__enter__()
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged or no safetensors file: {error}") from None
            self._path = path
        return self._file

    def read(self, path: pathlib.Path, name: str, expected: tuple[int, ...]) -> np.ndarray:
        file = self.open(path)
        part = file.get_slice(name)
        shape, stored = tuple(part.get_shape()), part.get_dtype()
        if shape != expected:
            raise UserError(
                f"{path}: tensor {name} has shape {list(shape)}, config.json says {list(expected)}"
            )
        if stored not in STORED:
            raise UserError(
                f"{path}: tensor {name} is stored as {stored}; allowed: {', '.join(STORED)}"
            )
        tensor = file.get_tensor(name)
        if self._check_finite and not np.isfinite(tensor).all():
            bad = int(np.count_nonzero(~np.isfinite(tensor)))
            raise UserError(f"{path}: tensor {name} holds {bad} values that are NaN or infinite")
        return tensor


type Found = dict[hf_tables.Entry, list[str]]


def _match(
    folder: pathlib.Path, files: Mapping[str, pathlib.Path], cfg: DecoderConfig
) -> tuple[Found, set[str]]:
    """Names of every entry's tensors, layer by layer, and the names nobody wants."""
    found: Found = {}
    missing: list[str] = []
    for entry in hf_tables.entries(cfg):
        names = []
        for layer in range(cfg.layers if entry.stacked else 1):
            options = [name.format(layer) for name in hf_tables.spellings(entry, cfg)]
            chosen = next((name for name in options if name in files), None)
            if chosen is None:
                missing.append(options[0])
            else:
                names.append(chosen)
        found[entry] = names
    if missing:
        raise UserError(f"{folder}: {_list(missing)} missing from the weights")
    used = {name for names in found.values() for name in names}
    buffers = re.compile("|".join(hf_tables.BUFFERS))
    return found, {name for name in files if name not in used and not buffers.search(name)}


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"tensor {shown}" if len(names) == 1 else f"tensors {shown}"


def _check_unknown(
    folder: pathlib.Path,
    unknown: set[str],
    files: Mapping[str, pathlib.Path],
    cfg: DecoderConfig,
    flat: Mapping[str, np.ndarray],
    reader: _Reader,
) -> None:
    for name in sorted(unknown):
        if cfg.tied and name in ("lm_head.weight", "embed_out.weight"):
            # some writers store the tied head as well: harmless while it is the embedding
            head = reader.read(files[name], name, flat["embed/w"].shape)
            if not np.array_equal(head.astype(flat["embed/w"].dtype), flat["embed/w"]):
                raise UserError(
                    f"{files[name]}: tensor {name} differs from the embedding, though config.json "
                    "says tie_word_embeddings; set it to false to keep both"
                )
            unknown = unknown - {name}
    if unknown:
        names = sorted(unknown)
        raise UserError(
            f"{files[names[0]]}: {_list(names)} unknown to a {cfg.family} model with this "
            f"config.json ({cfg.layers} layers)"
        )


def _fill(
    flat: dict[str, np.ndarray],
    entry: hf_tables.Entry,
    tensors: list[tuple[pathlib.Path, str]],
    cfg: DecoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    wanted: np.dtype | None,
    reader: _Reader,
) -> None:
    """Read one entry's tensors straight into their stacked arrays."""
    expected = hf_tables.stored_shape(entry, cfg)
    for layer, (path, name) in enumerate(tensors):
        tensor = reader.read(path, name, expected)
        for leaf, part in zip(entry.paths, entry.form.unpack(tensor, cfg), strict=True):
            if leaf not in flat:
                flat[leaf] = np.empty(shapes[leaf], wanted or tensor.dtype)
            if wanted is None and tensor.dtype != flat[leaf].dtype:
                raise UserError(
                    f"{path}: tensor {name} is {tensor.dtype}, the same tensor of other layers "
                    f"{flat[leaf].dtype}; name one dtype to read them as"
                )
            (flat[leaf][layer] if entry.stacked else flat[leaf])[...] = part
