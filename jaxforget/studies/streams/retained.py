"""What is left of every task after its end, and the law by which it fades."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.evals.retention_fits import LAWS, Fit, best_fit

FEWEST = 5
"""Looks from a task's end on without which nothing is fitted."""


def retained(
    looks: Sequence[Mapping[str, Any]], ends: Sequence[int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The share of each task's own gain that is left, over the steps since its end, and fits of it.

    The gain is how far the probe's mean log-probability rose from the last look before the task
    began to the last look at its end; 1 is all of it, 0 as before the task, and it may be more or
    less than either.

    Args:
      looks: rows of "step" and "nll", of every task, from step 0 on.
      ends: step at which each task ended.
      names: of the tasks.
    Returns:
      For each task but the last: "task", "gain" in nats a token and, where it is above 0, "times"
      in steps and "left"; with `FEWEST` looks also "law", the one of least AIC, its "fit", "low"
      and "high" at the times (95 % band of the mean by the delta method, None where it cannot be
      told), and "laws": "c", "b", "r2", "aic" and "half_life" of each that fits.
    """
    steps = np.asarray([row["step"] for row in looks])
    scores = -np.asarray([row["nll"] for row in looks], float)
    found = []
    for task, (begin, end) in enumerate(zip([0, *ends], ends[:-1], strict=False)):
        before, after = (int(np.searchsorted(steps, s, side="right")) - 1 for s in (begin, end))
        own = scores[:, task]
        gain = float(own[after] - own[before])
        row: dict[str, Any] = {"task": names[task], "gain": gain}
        if gain > 0:
            times, left = steps[after:] - steps[after], (own[after:] - own[before]) / gain
            row |= {"times": times.tolist(), "left": left.tolist()}
            row |= _fits(times.astype(float), left)
        found.append(row)
    return found


def _fits(times: np.ndarray, left: np.ndarray) -> dict[str, Any]:
    if len(times) < FEWEST or np.ptp(left) == 0:
        return {}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # laws that run off on their way to a fit
        try:
            best, fits = best_fit(times, left, tuple(LAWS))
        except UserError:  # no law follows this curve
            return {}
        low, high = best.band(times)
    return {
        "law": best.law,
        "fit": best(times).tolist(),
        "low": _finite(low),
        "high": _finite(high),
        "laws": {law: _about(fit) for law, fit in fits.items()},
    }


def _about(fit: Fit) -> dict[str, float | None]:
    numbers = {"c": fit.c, "b": fit.b, "r2": fit.r2, "aic": fit.aic, "half_life": fit.half_life}
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


def _finite(values: np.ndarray) -> list[float] | None:
    return values.tolist() if np.isfinite(values).all() else None
