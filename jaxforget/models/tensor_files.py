"""Folders of safetensors files: finding, opening, checking and writing named tensors."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxforget.engine.errors import UserError, did_you_mean

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
STORED = ("F32", "F16", "BF16")


def dtype_named(name: str | None) -> np.dtype | None:
    """numpy dtype of "float32", "float16" or "bfloat16"; None stays None.

    Raises:
      UserError: any other name.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: {did_you_mean(str(name), DTYPES)}")
    return DTYPES[name]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds a dictionary.

    Raises:
      UserError: missing, not JSON, not a dictionary.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a dictionary, got {type(content).__name__}")
    return content


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file; a full disk is a `UserError` naming it."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def write_tensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Write one safetensors file; a full disk is a `UserError` naming it."""
    try:
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


class TensorFolder:
    """The tensors of a folder's model.safetensors, or of the shards its index names.

    Files stay open (memory-mapped) until the context ends.
    """

    def __init__(self, folder: pathlib.Path, *, check_finite: bool = True):
        """Opens all files.

        Args:
          folder: where to look.
          check_finite: `read` refuses NaN and infinities.
        Raises:
          UserError: no weights, a file of the index missing, a damaged file, or an index that
            lists what no file holds.
        """
        self._check_finite = check_finite
        self._open: dict[pathlib.Path, Any] = {}
        self.path: dict[str, pathlib.Path] = {}  # of the file that holds each tensor
        try:
            self._find(folder)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "TensorFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.__exit__(None, None, None)
        self._open.clear()

    def drop(self, names: Iterable[str]) -> None:
        """Forget some tensors."""
        for name in names:
            del self.path[name]

    def _find(self, folder: pathlib.Path) -> None:
        single, index = folder / SINGLE, folder / INDEX
        if single.is_file():
            self._add(single)
            return
        if not index.is_file():
            pickled = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
            hint = f" ({pickled}: pickled weights are never opened)" if pickled else ""
            raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}{hint}")
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict):
            raise UserError(f"{index}: has no weight_map")
        for name in sorted({str(file) for file in listed.values()}):
            if pathlib.Path(name).name != name or not (folder / name).is_file():
                raise UserError(f"{index}: names the file {name}, which is not in {folder}")
            self._add(folder / name)
        lost = sorted(set(listed) - set(self.path))
        if lost:
            raise UserError(f"{index}: lists tensor {lost[0]}, which none of its files holds")

    def _add(self, path: pathlib.Path) -> None:
        try:
            file = safetensors.safe_open(str(path), framework="numpy")
            self._open[path] = file.__enter__()
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: damaged, or no safetensors file: {error}") from None
        self.path.update(dict.fromkeys(self._open[path].keys(), path))

    def read(self, name: str, expected: tuple[int, ...]) -> np.ndarray:
        """One tensor in its stored dtype.

        Args:
          name: as stored.
          expected: the shape it must have.
        Raises:
          UserError: another shape, a dtype that is not floating, NaN or infinity.
        """
        path = self.path[name]
        part = self._open[path].get_slice(name)
        shape, stored = tuple(part.get_shape()), part.get_dtype()
        if shape != expected:
            raise UserError(
                f"{path}: tensor {name} has shape {list(shape)}, config.json says {list(expected)}"
            )
        if stored not in STORED:
            raise UserError(
                f"{path}: tensor {name} is stored as {stored}; allowed: {', '.join(STORED)}"
            )
        tensor = self._open[path].get_tensor(name)
        if self._check_finite and not np.isfinite(tensor).all():
            bad = int(np.count_nonzero(~np.isfinite(tensor)))
            raise UserError(f"{path}: tensor {name} holds {bad} values that are NaN or infinite")
        return tensor
