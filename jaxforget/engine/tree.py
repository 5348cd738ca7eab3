"""Nested dictionaries of arrays addressed by paths such as "layers/attn/q/w"."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

type Params = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> flat dict keyed by "/"-joined paths, in sorted order of keys."""
    flat: dict[str, Any] = {}
    for key in sorted(tree):
        value, path = tree[key], f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}/"))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Inverse of `flatten`."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Params:
    """Union of two nested dicts; where both hold a leaf, `over` wins.

    This is how trained leaves (a subset, or LoRA factors beside their weight) join frozen ones.
    """
    return unflatten({**flatten(base), **flatten(over)})


def split(tree: Mapping[str, Any], keep: Callable[[str], bool]) -> tuple[Params, Params]:
    """Divide a nested dict into (leaves whose path satisfies `keep`, the others)."""
    flat = flatten(tree)
    chosen = {path: leaf for path, leaf in flat.items() if keep(path)}
    others = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten(chosen), unflatten(others)


def matches(pattern: str) -> Callable[[str], bool]:
    """Predicate on paths: does the regular expression match anywhere in the path?"""
    compiled = re.compile(pattern)
    return lambda path: compiled.search(path) is not None


def path_string(path: tuple[Any, ...]) -> str:
    """A jax key path of any pytree as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
