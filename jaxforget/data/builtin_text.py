"""Text that is on every machine with Python, to try things without a download.

Its words depend on the versions that are installed: for studies that others repeat, name files.
"""

import importlib
import pathlib
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

from jaxforget.data.fabricated import fabricated
from jaxforget.engine.errors import UserError, did_you_mean

MOST = 400_000  # characters of each, before the split
FABRICATED = "fabricated"
_HELD_OUT = 10  # every tenth document


def _reference() -> Iterator[str]:
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from (topics[name] for name in sorted(topics))


def _source() -> Iterator[str]:
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    for file in sorted(folder.glob("*.py")):
        yield file.read_text(encoding="utf-8", errors="replace")


def _notes() -> Iterator[str]:
    names = sorted({dist.metadata["Name"] or "" for dist in metadata.distributions()})
    for name in filter(None, names):
        try:
            yield str(metadata.metadata(name).json.get("description", ""))
        except metadata.PackageNotFoundError:
            continue


TEXTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "python_reference": _reference,
    "python_source": _source,
    "package_notes": _notes,
}
"""The language reference, the standard library's source, and the descriptions of the installed
packages."""


def builtin_rows(name: str, split: str) -> list[dict[str, Any]]:
    """Rows of a builtin set: `documents` as "text", or "fabricated" (or "fabricated/VERSION"), see
    `jaxforget.data.fabricated`.

    Raises:
      UserError: as `documents`; a split of "fabricated" that is not "train", or no such version.
    """
    kind, slash, version = name.partition("/")
    if kind == FABRICATED:
        if split != "train":
            raise UserError(f"builtin:{name}: split {split!r}. Allowed: train.")
        if slash and not version.isdecimal():
            raise UserError(f"builtin:{name}: version {version!r} is no number")
        return fabricated(int(version or 0))
    return [{"text": text} for text in documents(name, split)]


def documents(name: str, split: str) -> list[str]:
    """Different documents of one of `TEXTS`, the first `MOST` characters in a fixed order.

    Args:
      name: of `TEXTS`.
      split: "test" is every tenth document, "train" the others.
    Raises:
      UserError: no such text or split, or none of it on this machine.
    """
    if name not in TEXTS:
        raise UserError(f"builtin:{name}: no such text. {did_you_mean(name, [*TEXTS, FABRICATED])}")
    if split not in ("train", "test"):
        raise UserError(f"builtin:{name}: split {split!r}. Allowed: train, test.")
    found, size = [], 0
    for text in dict.fromkeys(TEXTS[name]()):  # a few topics have several names
        if text.strip() and size < MOST:
            found.append(text[: MOST - size])
            size += len(found[-1])
    chosen = [text for n, text in enumerate(found) if (n % _HELD_OUT == 0) == (split == "test")]
    if len(found) < 2 or not chosen:
        raise UserError(f"builtin:{name}: this Python has none of it")
    return chosen
