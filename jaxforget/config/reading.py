"""Configurations <-> YAML with dotted overrides.

Every error names the key, what it got and what is allowed.
"""

import dataclasses
import functools
import json
import math
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from jaxforget.config.suites import SUITES
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.yaml_file import explain_yaml, parse_yaml, read_yaml

# keys that change how a run goes but not its numbers: a resumed run may differ in them
_FREE = {
    "attacks": None,
    "run_dir": None,
    "resume": None,
    "mesh": None,
    "evaluate": None,
    "train": {"evaluate_every", "log_every", "save_every", "keep", "max_skipped"},
}


def overridden(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with values set by dotted keys.

    Raises:
      UserError: a key below something that has no keys.
    """
    copy = json.loads(json.dumps(tree))
    for key, value in overrides.items():
        _apply(copy, f"{key}={json.dumps(value)}")
    return copy


def load[C](schema: type[C], path: str | pathlib.Path | None, overrides: Iterable[str] = ()) -> C:
    """Read a YAML file and `a.b=c` overrides into a configuration.

    Args:
      schema: `UnlearnConfig`, `FinetuneConfig` or `EvaluateConfig`.
      path: YAML file; None: overrides alone.
      overrides: "key.subkey=value" with the value in YAML.
    Raises:
      UserError: unreadable file, unknown key (with the closest one), value of a wrong type or
        out of range; every fault at once.
    """
    tree = {} if path is None else read_yaml(pathlib.Path(path))
    for override in overrides:
        _apply(tree, override)
    return build(schema, tree, str(path or "overrides"))


def build[C](schema: type[C], tree: Mapping[str, Any], source: str = "config") -> C:
    """Validate a nested mapping against a schema; see `load`."""
    try:
        config = _adapter(schema).validate_python(dict(tree), extra="forbid")
    except ValidationError as error:
        lines = [_explain(schema, fault, source) for fault in error.errors()]
        raise UserError("\n".join(dict.fromkeys(lines))) from None
    _refuse_infinite(dataclasses.asdict(config), source)
    return config


def _refuse_infinite(tree: Mapping[str, Any], where: str, parents: str = "") -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _refuse_infinite(value, where, f"{parents}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {parents}{key}: must be a finite number (got {value})")


def resolve[C](schema: type[C], given: C | Mapping[str, Any] | str | pathlib.Path) -> C:
    """A configuration from itself, from a nested mapping, or from the path of a YAML file."""
    if isinstance(given, schema):
        return given
    if isinstance(given, (str, pathlib.Path)):
        return load(schema, given)
    return build(schema, typing.cast(Mapping[str, Any], given))


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def to_yaml(config: Any) -> str:
    """The resolved configuration, every default written out."""
    return yaml.safe_dump(as_tree(config), sort_keys=False, allow_unicode=True)


def as_tree(config: Any) -> dict[str, Any]:
    """Nested dict of plain values."""
    return _adapter(type(config)).dump_python(config, mode="json")


def identity(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides a run's numbers."""
    tree = as_tree(config)
    for key, inner in _FREE.items():
        if inner is None:
            tree.pop(key, None)
        elif key in tree:
            tree[key] = {name: value for name, value in tree[key].items() if name not in inner}
    return tree


def defaults(config: Any) -> dict[str, Any]:
    """Default values of a configuration's options, nested as in `as_tree`; others are left out."""
    found = {}
    for each in dataclasses.fields(config):
        value = each.default
        if each.default_factory is not dataclasses.MISSING:
            value = each.default_factory()
        if value is not dataclasses.MISSING:
            found[each.name] = as_tree(value) if dataclasses.is_dataclass(value) else value
    return json.loads(json.dumps(found))


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: must be key=value, for example train.epochs=3")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"override {override!r}: not a YAML value: {explain_yaml(error)}"
        ) from error
    node, (*parents, leaf) = tree, key.split(".")
    for parent in parents:
        child = node.get(parent)
        if isinstance(child, str):  # a bare name or path stands for its mapping
            child = {"name" if parent == "method" else "path": child}
        if not isinstance(child, dict | None):
            raise UserError(
                f"override {override!r}: {parent} is a {type(child).__name__} without keys of its "
                f"own; set it whole, {parent}=..."
            )
        node[parent] = child or {}
        node = node[parent]
    if key == "method.name" and node.get("name") not in (None, value):
        node.clear()  # another method: the old one's parameters do not belong to it
    node[leaf] = value


def _explain(schema: Any, fault: Any, source: str) -> str:
    path = [str(part) for part in fault["loc"] if not str(part).startswith("function-")]
    where = ".".join(part for at, part in enumerate(path) if not _tagged(path, at))
    if fault["type"] == "union_tag_invalid":
        return f"{source}: {where}.suite: {did_you_mean(str(fault['ctx']['tag']), SUITES)}"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{source}: {where}: no such key. {did_you_mean(path[-1], _keys(schema, path[:-1]))}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{source}: {where}: missing; it has no default"
    got = "" if isinstance(fault["input"], Mapping) else f" (got {fault['input']!r})"
    got += "; allowed is 'start:stop' in quotes" if path[-1:] == ["rows"] else ""
    return f"{source}: {where}: {fault['msg']}{got}"


def _tagged(path: list[str], at: int) -> bool:
    """Is this part of a fault's path the name of a suite, which no key spells?"""
    return at > 0 and path[at - 1] == "evaluate" and path[at] in SUITES


def _keys(schema: Any, path: list[str]) -> list[str]:
    """Field names of the dataclass reached from `schema` by `path`."""
    for at, part in enumerate(path):
        if _tagged(path, at):
            schema = SUITES[part]
        elif dataclasses.is_dataclass(schema) and part in typing.get_type_hints(schema):
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
