"""How often each finished task is rehearsed: by its age, to a budget that is met exactly."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxforget.data.stream import walk
from jaxforget.engine.errors import UserError

type Law = Literal["examples", "tasks", "power", "exponential"]
"""What a finished task's part of all rehearsal is proportional to: how many of its examples are
kept; 1; age^-rate; exp(-rate age). The age of the task that ended last is 1."""


def shares(ages: Sequence[int], law: Law, rate: float = 1.0) -> np.ndarray:
    """Part of each finished task in the rehearsal, float64 `[k]`, sum 1.

    Args:
      ages: tasks since each began, >= 1.
      law: see `Law`, but not "examples".
      rate: >= 0; 0: all tasks alike.
    Raises:
      UserError: an age below 1, a rate below 0.
    Source: Gandhi et al. 2024 (arXiv 2401.10393): need decays by a power of the time since
      practice; the exponential and the uniform law are its controls.
    """
    if not len(ages) or min(ages) < 1:
        raise UserError(f"rehearsal: ages must be at least 1, got {list(ages)}")
    if rate < 0:
        raise UserError(f"memory.rehearsal.rate must be at least 0, got {rate}")
    age = np.asarray(ages, float)
    if law == "tasks":
        logs = np.zeros(len(age))
    else:
        logs = -rate * (np.log(age) if law == "power" else age)
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def counts(parts: np.ndarray, total: int, least: int = 0) -> np.ndarray:
    """Whole numbers in proportion to `parts` whose sum is `total` exactly, by largest remainders.

    Args:
      parts: >= 0 `[k]`, sum 1; of equal remainders the first gets more.
      total: >= 0.
      least: of each; of a total that is not enough for that, as many as it has for all alike.
    Returns:
      int64 `[k]`.
    """
    parts = np.asarray(parts, float)
    least = min(least, total // len(parts))
    exact = parts * (total - least * len(parts))
    whole = np.floor(exact + 1e-9).astype(np.int64)
    left = total - least * len(parts) - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
    return whole + least


def rehearsed(
    groups: Sequence[np.ndarray], count: np.ndarray, seed: Sequence[int], views: int = 1
) -> np.ndarray:
    """The examples to rehearse in turn: so many of each task, spread evenly over the whole.

    Args:
      groups: examples kept of each task, int64, none of them empty.
      count: of each task, see `counts`.
      seed: of the order in which a task's examples come.
      views: see `jaxforget.data.stream.walk`.
    Returns:
      int64 `[count.sum()]`.
    """
    own = [
        walk(ids, 0, int(n), (*seed, place), views=views)
        for place, (ids, n) in enumerate(zip(groups, count, strict=True))
    ]
    when = np.concatenate([(np.arange(len(ids)) + 0.5) / max(len(ids), 1) for ids in own])
    return np.concatenate(own)[np.argsort(when, kind="stable")]
