"""What a model keeps of earlier tasks: measures of the matrix of scores and of curves of them.

`scores[k, i]` is the score of the model after task k on task i's held-out set, higher is better,
row 0 before any training (for language models minus the mean NLL). `curves[n, i]` is the score at
the n-th look, look 0 before the first update; `ends[i]` is the look that ends task i's training.
Sources: GEM (arXiv 1706.08840), Chaudhry et al. 2018 (arXiv 1801.10112),
A-GEM (arXiv 1812.00420), De Lange et al. 2023 (arXiv 2205.13452).
"""

from collections import deque
from collections.abc import Sequence

import numpy as np


def average(scores: np.ndarray) -> float:
    """ACC: mean over all tasks after the last one; `scores` float `[N + 1, N]`."""
    return float(np.asarray(scores)[-1].mean())


def average_incremental(scores: np.ndarray) -> float:
    """AIA: mean over the tasks k of the average score of tasks 1 .. k after task k."""
    scores = np.asarray(scores, float)
    return float(np.mean([scores[k, :k].mean() for k in range(1, len(scores))]))


def backward_transfer(scores: np.ndarray) -> float:
    """BWT: mean over all tasks but the last of what training later ones did to them.

    nan for a single task.
    """
    scores = np.asarray(scores, float)
    count = scores.shape[1]
    change = [scores[count, i] - scores[i + 1, i] for i in range(count - 1)]
    return float(np.mean(change)) if change else float("nan")


def forward_transfer(scores: np.ndarray, baseline: np.ndarray | None = None) -> float:
    """FWT: mean over all tasks but the first of the score just before them, above `baseline`.

    Args:
      scores: `[N + 1, N]`.
      baseline: `[N]`, scores of a random initialisation (FWT); None: row 0, those of the start
        (FWT0).
    """
    scores = np.asarray(scores, float)
    start = scores[0] if baseline is None else np.asarray(baseline, float)
    change = [scores[i, i] - start[i] for i in range(1, scores.shape[1])]
    return float(np.mean(change)) if change else float("nan")


def transfer_by_distance(scores: np.ndarray) -> dict[int, float]:
    """Mean rise of a task's score above row 0, by how many tasks ago it was trained.

    0 is just after its own training, -1 just before it: below 0 it is transfer to tasks to come.

    Args:
      scores: `[N + 1, N]`.
    Returns:
      Distance from 1 - N to N - 1 -> mean over all tasks at that distance.
    Source: Yildiz et al. 2024 (arXiv 2402.17400).
    """
    rise = np.asarray(scores, float)[1:] - np.asarray(scores, float)[0]
    count = len(rise)
    return {d: float(np.diagonal(rise, -d).mean()) for d in range(1 - count, count)}


def forgetting(scores: np.ndarray) -> float:
    """FM: mean over all tasks but the last of the best score since training on it, less the last.

    The best is taken over the rows from the task's own end to the last but one.
    """
    scores = np.asarray(scores, float)
    count = scores.shape[1]
    lost = [scores[i + 1 : count, i].max() - scores[count, i] for i in range(count - 1)]
    return float(np.mean(lost)) if lost else float("nan")


def intransigence(scores: np.ndarray, joint: np.ndarray) -> np.ndarray:
    """Of each task: score of a model trained on all tasks, less the score at its own end; `[N]`."""
    scores = np.asarray(scores, float)
    own = np.asarray([scores[i + 1, i] for i in range(scores.shape[1])])
    return np.asarray(joint, float) - own


def worst(curves: np.ndarray, ends: Sequence[int], now: int | None = None) -> float:
    """min-ACC: mean over the earlier tasks of their worst score since their end.

    Args:
      curves: `[looks, N]`.
      ends: look at which each task's training ends, increasing.
      now: last look considered; None: the last. Its task is the first whose end is not before it.
    Returns:
      nan while there is no earlier task.
    """
    curves = np.asarray(curves, float)
    now = len(curves) - 1 if now is None else now
    task = int(np.searchsorted(ends, now))
    lows = [curves[ends[i] + 1 : now + 1, i].min() for i in range(task) if ends[i] < now]
    return float(np.mean(lows)) if lows else float("nan")


def worst_case(curves: np.ndarray, ends: Sequence[int]) -> float:
    """WC-ACC at the end: 1/k of the last task's score and 1 - 1/k of `worst`; bounds ACC below."""
    curves = np.asarray(curves, float)
    count = len(ends)
    last = curves[-1, count - 1]
    return float(last if count == 1 else last / count + (1 - 1 / count) * worst(curves, ends))


def windowed_forgetting(curves: np.ndarray, window: int) -> np.ndarray:
    """WF: of each task the largest drop within `window` looks; `[N]`, >= 0."""
    return _largest_change(-np.asarray(curves, float), window)


def windowed_plasticity(curves: np.ndarray, window: int) -> np.ndarray:
    """WP: of each task the largest rise within `window` looks; `[N]`, >= 0.

    The published code keeps the running maximum here, too, and misses rises that follow a drop.
    """
    return _largest_change(np.asarray(curves, float), window)


def _largest_change(curves: np.ndarray, window: int) -> np.ndarray:
    """Largest rise from a look to a later one, at most `window` looks apart, both ends counted."""
    if window < 1:
        raise ValueError(f"window is {window}")
    return np.asarray([_largest_rise(curve, window) for curve in curves.T.tolist()])


def _largest_rise(curve: Sequence[float], window: int) -> float:
    """One pass: the looks of a deque are those that may still be the window's lowest, rising."""
    lowest: deque[int] = deque()
    best = 0.0
    for now, value in enumerate(curve):
        while lowest and curve[lowest[-1]] >= value:
            lowest.pop()
        lowest.append(now)
        if lowest[0] <= now - window:
            lowest.popleft()
        best = max(best, value - curve[lowest[0]])
    return best


def learning_curve_area(curves: np.ndarray, starts: Sequence[int], looks: int) -> float:
    """LCA: mean over the tasks of their mean score over the first `looks` + 1 looks of training."""
    curves = np.asarray(curves, float)
    return float(np.mean([curves[s : s + looks + 1, i].mean() for i, s in enumerate(starts)]))


def recovery_looks(
    curves: np.ndarray, ends: Sequence[int], task: int, share: float = 0.9
) -> int | None:
    """Looks after the end of `task` until its score, once dropped, is back at `share` of what was
    lost in the next task; None where it never is. 0 where nothing was lost."""
    after = np.asarray(curves, float)[ends[task] :, task]
    low = int(after.argmin())
    if after[low] >= after[0]:
        return 0
    target = after[low] + share * (after[0] - after[low])
    back = np.flatnonzero(after[low:] >= target)
    return int(low + back[0]) if len(back) else None
