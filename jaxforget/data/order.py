"""In which order tasks are trained: by how alike their texts are, or not."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxforget.data.sets import TokenisedSet

type Order = Literal["given", "reversed", "random", "similar", "dissimilar"]
"""Tasks as listed, or backwards; at random; each next to the most similar one that is left, or to
the least, beginning with the first that is listed."""


def order_of(
    order: Order, sets: Sequence[TokenisedSet], vocabulary: int, seed: int = 0
) -> list[int]:
    """Tasks in the order in which they are trained, as their places among `sets`.

    Args:
      order: see `Order`.
      sets: training examples of each task.
      vocabulary: tokens there are.
      seed: of "random".
    """
    places = list(range(len(sets)))
    if order in ("given", "reversed"):
        return places if order == "given" else places[::-1]
    if order == "random":
        return np.random.default_rng(seed).permutation(len(sets)).tolist()
    apart, sign = distances(sets, vocabulary), 1 if order == "similar" else -1
    found, left = [0], set(places[1:])
    while left:
        last = found[-1]
        found.append(min(left, key=lambda place: (sign * apart[last, place], place)))
        left.remove(found[-1])
    return found


def distances(sets: Sequence[TokenisedSet], vocabulary: int) -> np.ndarray:
    """Jensen-Shannon divergence of the tasks' distributions of tokens, `[N, N]`, nats, 0..log 2."""
    counts = [np.bincount(each.targets[each.mask], minlength=vocabulary) for each in sets]
    p = np.stack([count / count.sum() for count in counts])

    def entropy(q: np.ndarray) -> np.ndarray:
        return -np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0).sum(-1)

    mixed = entropy(0.5 * (p[:, None] + p[None]))
    return np.maximum(mixed - 0.5 * (entropy(p)[:, None] + entropy(p)[None]), 0)
