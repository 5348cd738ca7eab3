"""What a failed validation of nested dataclasses says to whoever wrote the values."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from jaxforget.engine.errors import did_you_mean


def explain(schema: Any, fault: Any, source: str) -> str:
    """One fault that pydantic found, with the key, the value and what is allowed.

    Args:
      schema: the dataclass that was validated against.
      fault: an entry of `ValidationError.errors()`.
      source: of the values, such as the file's name.
    """
    path = [str(part) for part in fault["loc"] if not str(part).startswith("function-")]
    where = ".".join(path)
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{source}: {where}: no such key. {did_you_mean(path[-1], _keys(schema, path[:-1]))}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{source}: {where}: missing; it has no default"
    got = "" if isinstance(fault["input"], Mapping) else f" (got {fault['input']!r})"
    got += "; allowed is 'start:stop' in quotes" if path[-1:] == ["rows"] else ""
    return f"{source}: {where}: {fault['msg']}{got}"


def _keys(schema: Any, path: list[str]) -> list[str]:
    """Field names of the dataclass reached from `schema` by `path`."""
    for part in path:
        if dataclasses.is_dataclass(schema) and part in typing.get_type_hints(schema):
            schema = _dataclass_in(typing.get_type_hints(schema)[part])
    if not dataclasses.is_dataclass(schema):
        return []
    return [each.name for each in dataclasses.fields(schema)]


def _dataclass_in(hint: Any) -> Any:
    """The dataclass inside Optional, tuple, Annotated or an alias of these."""
    if isinstance(hint, typing.TypeAliasType):
        return _dataclass_in(hint.__value__)
    if dataclasses.is_dataclass(hint):
        return hint
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        found = (_dataclass_in(each) for each in typing.get_args(hint))
        return next((each for each in found if each is not None), None)
    return None
