"""What is kept of finished tasks to be replayed: examples, chosen by what has been seen alone.

A kept example is a number of the joined set of all tasks. Memories are functions of the tasks that
ended and the seed, not of a history, so that a resumed run has the very same.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxforget.engine.errors import UserError

type Kind = Literal["reservoir", "balanced", "recent", "hardest"]
"""What is kept once a memory is full: a uniform sample of everything seen; as many of every task;
the last seen (first in, first out); of every task as many, those of the highest loss when it ended
(loss-aware)."""


def order_of(
    ids: np.ndarray, seed: tuple[int, ...], losses: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A finished task's examples in the order in which they are kept, and their keys.

    Args:
      ids: of the task, int64 `[n]`.
      seed: of the run and the task.
      losses: `[n]`, for "hardest": the highest first; None: a random order.
    Returns:
      (ids int64 `[n]`, keys float64 `[n]` in [0, 1), increasing): the least keys of all tasks are
      a uniform sample of all examples.
    """
    keys = np.random.default_rng(list(seed)).random(len(ids))
    if losses is not None:
        if len(losses) != len(ids):
            raise ValueError(f"{len(losses)} losses of {len(ids)} examples")
        return ids[np.argsort(-np.asarray(losses), kind="stable")], np.sort(keys)
    place = np.argsort(keys, kind="stable")
    return ids[place], keys[place]


def kept(
    tasks: Sequence[tuple[np.ndarray, np.ndarray]], size: int, kind: Kind = "balanced"
) -> list[np.ndarray]:
    """What is kept of each finished task.

    Args:
      tasks: (ids, keys) of each, see `order_of`, in the order in which they ended.
      size: most examples of all tasks together, >= 1.
      kind: see `Kind`. Where a task has fewer examples than its part, the others do not take its
        place.
    Raises:
      UserError: a size below 1.
    Source: reservoir sampling as its equivalent by keys, Efraimidis and Spirakis 2006.
    """
    if size < 1:
        raise UserError(f"memory.size must be at least 1, got {size}")
    if kind in ("balanced", "hardest"):
        shares = [size // len(tasks) + (t < size % len(tasks)) for t in range(len(tasks))]
        return [ids[:share] for (ids, _), share in zip(tasks, shares, strict=True)]
    if kind == "recent":
        left, found = size, []
        for ids, _ in reversed(tasks):
            found.append(ids[:left])
            left -= len(found[-1])
        return found[::-1]
    every = np.concatenate([keys for _, keys in tasks]) if tasks else np.zeros(0)
    limit = np.inf if len(every) <= size else np.sort(every)[size - 1]
    return [ids[keys <= limit] for ids, keys in tasks]
