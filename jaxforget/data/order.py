"""In which order tasks are trained, by how alike their texts are, and examples, by their scores."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError

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


def selected(scores: np.ndarray, share: float) -> np.ndarray:
    """The examples of the highest scores: places, increasing, int64 `[floor(share n)]`.

    Args:
      scores: of each example `[n]`, finite; of equal ones the first go first.
      share: of the examples that is kept, in (0, 1].
    Raises:
      UserError: a share out of range or of no example at all; a score that is not finite.
    Source: DELT, Dai et al. 2025 (arXiv 2506.21545), "Top-R selection".
    """
    scores = _finite(scores)
    if not 0 < share <= 1:
        raise UserError(f"order.keep: must be above 0 and at most 1, got {share}")
    count = math.floor(share * len(scores) + 1e-9)
    if not count:
        raise UserError(f"order.keep: {share} of {len(scores)} examples is none at all")
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def folded(scores: np.ndarray, layers: int, first: Literal[0, 1] = 0) -> np.ndarray:
    """Folding order: sorted upwards, dealt to `layers` folds in turn, fold after fold.

    Every fold runs once from the lowest to the highest scores, nothing is repeated.

    Args:
      scores: of each example `[n]`, finite; equal ones stay in order.
      layers: L >= 1; 1: plain sorting.
      first: rank of the lowest score. Ranks r with r mod L = 0, 1, ..., L - 1 are the folds: with
        0 the first fold begins with the lowest score, as in the released code; with 1, as in the
        paper's equation, it holds ranks L, 2L, ...
    Returns:
      Places of the examples, a permutation, int64 `[n]`.
    Raises:
      UserError: layers below 1, a score that is not finite.
    Source: DELT, Dai et al. 2025 (arXiv 2506.21545), "Folding".
    """
    if layers < 1 or first not in (0, 1):
        raise UserError(
            f"order: layers must be at least 1, got {layers}; first 0 or 1, got {first}"
        )
    ranked = np.argsort(_finite(scores), kind="stable")
    fold = (np.arange(len(ranked)) + first) % layers
    return ranked[np.argsort(fold, kind="stable")]


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, float)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise UserError("order: every example needs one finite score")
    return scores
