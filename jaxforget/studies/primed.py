"""What taught texts have done to their keywords, by category, and what predicts it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.config.acquire import PrimingConfig
from jaxforget.data.facts import Probe
from jaxforget.data.injection import Schedule
from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.evals.priming import Rise, memory_score, priming_correlation, priming_score


def categories_of(records: Sequence[Record], config: PrimingConfig) -> list[str]:
    """The category of every text.

    Raises:
      UserError: no such column, or no text in it.
    """
    found = []
    for record in records:
        value = record.extra.get(config.category)
        if not isinstance(value, str):
            hint = did_you_mean(config.category, record.extra)
            raise UserError(
                f"{record.source}, row {record.row}: priming.category {config.category!r} is no "
                f"text. {hint}"
            )
        found.append(value)
    return found


def primed(
    looks: np.ndarray,
    values: np.ndarray,
    schedule: Schedule,
    probes: Sequence[Probe],
    categories: Sequence[str],
    config: PrimingConfig,
) -> dict[str, Any]:
    """Memory and priming by category over the updates since each text's last presentation.

    A keyword's tokens count by their mean, so a ratio is that of their geometric mean.

    Args:
      looks: updates done at every regular look `[T]`.
      values: mean log-probability of every probe at them `[T, probes]`.
      schedule: who was presented when; texts of the mode "never" are the control, counted from
        when they would have been.
      probes: all of them.
      categories: of every text.
      config: which kinds of probes ask for what.
    Returns:
      "groups": of each category and mode, "times", mean "memory" and "priming" log-ratios at them
      and, at the first of them, "memory_ratio" and "priming_ratio", arithmetic means;
      "correlation" of log S_prime with the keyword's log-probability in its own text before, and
      with that after, over the presented texts, None where they are too few or all alike.
    """
    before, after, times = _aligned(looks, values, schedule, probes, config)
    scores = [[_scores(old, row) for row in rows] for old, rows in zip(before, after, strict=True)]
    groups = []
    about = [*zip(categories, schedule.modes, strict=True)]
    for category, mode in dict.fromkeys(about):
        own = [fact for fact, each in enumerate(about) if each == (category, mode)]
        group: dict[str, Any] = {"category": category, "mode": mode, "texts": len(own)}
        for place, name in enumerate(("memory", "priming")):
            rises = [[row[place] for row in scores[fact]] for fact in own]
            logs = np.asarray([[rise.log_ratio for rise in row] for row in rises])
            group[name] = logs.mean(axis=0).tolist()
            group[f"{name}_ratio"] = float(np.mean([row[0].ratio for row in rises]))
        groups.append(group | {"times": times})
    taught = [fact for fact, (_, mode) in enumerate(about) if mode != "never"]
    return {"groups": groups, "correlation": _correlation(taught, scores, before, after)}


def _aligned(
    looks: np.ndarray,
    values: np.ndarray,
    schedule: Schedule,
    probes: Sequence[Probe],
    config: PrimingConfig,
) -> tuple[list[Any], list[Any], list[int]]:
    """Per text (memory, priming) probes before it is presented, and at the looks after it."""
    before, after, counts = [], [], []
    for fact in range(len(schedule.modes)):
        kinds = [
            [n for n, probe in enumerate(probes) if probe.fact == fact and probe.kind == kind]
            for kind in (config.memory, config.priming)
        ]
        met = schedule.steps(fact)
        first, later = np.searchsorted(looks, met[0]), np.flatnonzero(looks > met[-1])
        before.append([values[first, own] for own in kinds])
        after.append([[values[look, own] for own in kinds] for look in later])
        counts.append(len(later))
    most = min(counts)
    if not most:
        raise UserError("priming: there is no look after the last presentation; raise train.steps")
    start = schedule.steps(0)[-1]
    times = [int(step - start) for step in looks[looks > start][:most]]
    return before, [rows[:most] for rows in after], times


def _scores(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> tuple[Rise, Rise]:
    (memory, prompts), (memory_now, prompts_now) = before, after
    return (
        memory_score(memory, memory_now),
        priming_score([x[None] for x in prompts], [x[None] for x in prompts_now]),
    )


def _correlation(
    taught: Sequence[int], scores: Sequence[Any], before: Sequence[Any], after: Sequence[Any]
) -> Mapping[str, float] | None:
    columns = [
        [scores[fact][0][1].log_ratio for fact in taught],
        [float(before[fact][0].mean()) for fact in taught],
        [float(after[fact][0][0].mean()) for fact in taught],
    ]
    try:
        found = priming_correlation(*map(np.asarray, columns))
    except UserError:  # fewer than three texts, or nothing that differs
        return None
    return {
        "before": found.before,
        "before_p": found.before_p,
        "after": found.after,
        "after_p": found.after_p,
    }
