"""Files written beside and renamed, so that a failure never harms what was there."""

import json
import os
import pathlib
import tempfile
from typing import Any


def write_atomically(path: str | pathlib.Path, data: str | bytes) -> None:
    """Write `data` to a temporary sibling, flush it to disk, rename it onto `path`.

    Raises:
      OSError: with `path` as its file name, whatever step failed; what was there is unharmed.
    """
    path = pathlib.Path(path)
    try:
        _write(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _write(path: pathlib.Path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


def write_json(path: str | pathlib.Path, value: Any) -> None:
    """`value` as indented JSON, atomically; NaN is refused because JSON has none."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False, sort_keys=False) + "\n")
