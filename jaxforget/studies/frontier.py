"""Which of several settings forget most for what they keep, and which is nearest to the goal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

FORGOT = "forget_prob"


def kept_by(rows: Sequence[Mapping[str, Any]]) -> str:
    """The metric that says what is kept: model utility where every row has it."""
    has_all = all(row.get("model_utility") is not None for row in rows)
    return "model_utility" if has_all else "retain_prob"


def frontier_of(rows: Sequence[Mapping[str, Any]], kept: str) -> list[int]:
    """Indices of rows that no other row beats in forgetting and keeping at once, in order.

    A row beats another where it is at least as good in both and better in one. Rows without a
    value are never on the frontier.
    """
    points = {i: point for i, row in enumerate(rows) if (point := _point(row, kept)) is not None}

    def beaten(point: tuple[float, float]) -> bool:
        return any(
            other != point and other[0] <= point[0] and other[1] >= point[1]
            for other in points.values()
        )

    return [i for i, point in points.items() if not beaten(point)]


def best_of(
    rows: Sequence[Mapping[str, Any]], kept: str, oracle: Mapping[str, Any] | None
) -> int | None:
    """Index of the best row, or None where no row has the values.

    With an oracle it is the row nearest to it in (forget probability, what is kept), because
    forgetting more than a model that never learned is no merit; without one, the row with the
    largest harmonic mean of 1 - forget probability and what is kept. The first of equals wins.
    """
    goal = None if oracle is None else _point(oracle, kept)
    scored = [
        (_merit(point, goal), -i)
        for i, row in enumerate(rows)
        if (point := _point(row, kept)) is not None
    ]
    return -max(scored)[1] if scored else None


def _merit(point: tuple[float, float], goal: tuple[float, float] | None) -> float:
    if goal is not None:
        return -math.dist(point, goal)
    forgotten, kept = 1.0 - point[0], point[1]
    return 2 * forgotten * kept / (forgotten + kept) if forgotten + kept > 0 else 0.0


def _point(row: Mapping[str, Any], kept: str) -> tuple[float, float] | None:
    values = row.get(FORGOT), row.get(kept)
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return float(values[0]), float(values[1])  # pyright: ignore[reportArgumentType]
