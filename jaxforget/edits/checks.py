"""Checks on trees and patterns that the edits share."""

import re
from collections.abc import Callable

import jax.numpy as jnp

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, matches

STACKED = "(^|/)layers/"
"""Paths of leaves that hold one tensor for each layer, stacked on axis 0."""


def check_alike(who: str, what: str, tree: Params, params: Params) -> None:
    """Has a tree the paths and shapes of the parameters?

    Args:
      who: the edit, for the message.
      what: the tree, for the message.
      tree: to look at.
      params: the parameters.
    Raises:
      UserError: it has not; names the first path that differs.
    """
    given, wanted = flatten(tree), flatten(params)
    for path in sorted(given.keys() | wanted.keys()):
        if path not in given or path not in wanted:
            raise UserError(f"{who}: {what} and the parameters differ, only one has {path!r}")
        if jnp.shape(given[path]) != jnp.shape(wanted[path]):
            raise UserError(
                f"{who}: {what} and the parameters differ at {path!r}: "
                f"{jnp.shape(given[path])} and {jnp.shape(wanted[path])}"
            )


def chosen(who: str, name: str, pattern: str | None, params: Params) -> Callable[[str], bool]:
    """Predicate on paths; with None nothing is chosen.

    Args:
      who: the edit, for the message.
      name: of the argument, for the message.
      pattern: regular expression searched in paths, or None.
      params: at least one of their paths must match.
    Raises:
      UserError: no regular expression, or no path matches.
    """
    if pattern is None:
        return lambda path: False
    try:
        predicate = matches(pattern)
    except re.error as error:
        raise UserError(f"{who}: {name} {pattern!r} is no regular expression: {error}") from None
    if not any(map(predicate, flatten(params))):
        raise UserError(
            f"{who}: {name} {pattern!r} matches no leaf, e.g. not {next(iter(flatten(params)))!r}"
        )
    return predicate
