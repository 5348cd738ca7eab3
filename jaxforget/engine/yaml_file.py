"""YAML files read strictly: no key twice, every fault with its line."""

import pathlib
from typing import Any

import yaml

from jaxforget.engine.errors import UserError


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice; YAML itself lets the last one win silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            here = key.start_mark.line + 1
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} twice in one mapping, first in line "
                    f"{seen[key.value]}",
                    problem_mark=key.start_mark,
                )
            if isinstance(key.value, str):
                seen[key.value] = here
        return node


def read_yaml(path: pathlib.Path, what: str = "config") -> dict[str, Any]:
    """The mapping a YAML file holds; {} of an empty file.

    Args:
      path: of the file, UTF-8.
      what: the file in a word, for messages.
    Raises:
      UserError: unreadable, not UTF-8, not YAML, a key twice, or no mapping; names the line.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path}: not UTF-8 text at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{what} {path}: not valid YAML: {explain_yaml(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{what} {path}: must be a mapping of keys, is a {type(tree).__name__}")
    return tree


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
      yaml.YAMLError: no YAML, or a key twice; see `explain_yaml`.
    """
    return yaml.load(text, _Loader)  # a subclass of SafeLoader


def explain_yaml(error: yaml.YAMLError) -> str:
    """A YAML error as one line with its place."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return f"{where}{problem}"
