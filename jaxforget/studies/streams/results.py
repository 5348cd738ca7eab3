"""From what was measured of a stream to results.json."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.config.stream import ContinualConfig, EffectConfig
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.evals import forgetting
from jaxforget.evals.effect_size import NON_TRIVIAL, hedges_g
from jaxforget.studies.common import config_digest, environment, peak_bytes
from jaxforget.studies.streams.looks import read_looks
from jaxforget.studies.streams.retained import retained
from jaxforget.studies.streams.stream import Stream, Streamed


def results_of(
    config: ContinualConfig,
    stream: Stream,
    streamed: Streamed,
    order: Sequence[int],
    recovered: Sequence[float] | None,
) -> dict[str, Any]:
    """results.json of one run.

    Args:
      config, stream, streamed: of the run.
      order: its tasks, as places in the configuration.
      recovered: mean NLL of earlier tasks after the recovery probe, or None.
    """
    rows = _rows(stream)
    nll = np.asarray([row["nll"] for row in rows])
    names = [config.stream[place].name for place in order]
    matrix = {
        "tasks": names,
        "nll": nll.tolist(),
        "tokens": rows[0]["tokens"],
        "trained": ["start", *(task.name for task in stream.tasks)],
    }
    looks = read_looks(stream.run)
    metrics = _metrics(nll, _random(stream, nll)) | _stability(looks, stream, config)
    also = {name: [row["also"][name] for row in rows] for name in config.measure.also}
    metrics |= {f"{name}_nll": values[-1] for name, values in also.items()}
    if recovered is not None:
        metrics |= _regained(nll, recovered)
    return {
        "method": stream.strategy.name,
        "model": config.model or "scratch",
        "metrics": {
            name: value if math.isfinite(value) else None for name, value in metrics.items()
        },
        "matrix": matrix,
        "also": also,
        "looks": looks,
        "transfer": _transfer(nll),
        "modules": _modules(stream),
        "retention": retained(looks, stream.ends, names) if _told(stream, looks) else [],
        "ends": stream.ends,
        "recovered_nll": recovered,
        "throughput": _throughput(streamed),
        "seconds": streamed.seconds,
        **environment(),
        "config_sha256": config_digest(config),
    }


def _throughput(streamed: Streamed) -> dict[str, Any]:
    return {
        "tokens_per_second": streamed.tokens_per_second,
        "step_ms": streamed.step_ms,
        "steps": streamed.steps,
        "step_bytes": streamed.step_bytes,
        "peak_bytes": peak_bytes(),
    }


def _rows(stream: Stream) -> list[dict[str, Any]]:
    files = [stream.run.path / "tasks" / "start.json"]
    files += [stream.folder(task) / "row.json" for task in range(len(stream.tasks))]
    if stream.rehearsal_steps:
        files[-1] = stream.run.path / "tasks" / "final.json"
    return [json.loads(file.read_text()) for file in files]


def _transfer(nll: np.ndarray) -> dict[str, list[float]]:
    """Rise above the start by tasks since a task was trained; empty where not one by one."""
    if len(nll) != nll.shape[1] + 1 or nll.shape[1] < 2:
        return {"distance": [], "mean": []}
    found = forgetting.transfer_by_distance(-nll)
    return {"distance": list(found), "mean": list(found.values())}


def _modules(stream: Stream) -> list[dict[str, Any]]:
    """What was asked for of the modules, at the end of each task."""
    if not stream.config.measure.modules:
        return []
    files = [stream.folder(task) / "modules.json" for task in range(len(stream.tasks))]
    named = zip(stream.tasks, files, strict=True)
    return [{"task": task.name, **json.loads(file.read_text())} for task, file in named]


def _random(stream: Stream, nll: np.ndarray) -> np.ndarray | None:
    """NLL of every task under random parameters, where that is asked for."""
    if not stream.config.measure.random:
        return None
    if stream.config.model is None:
        return nll[0]
    file = stream.run.path / "tasks" / "random.json"
    return np.asarray(json.loads(file.read_text())["nll"])


def _told(stream: Stream, looks: Sequence[Any]) -> bool:
    """Do the looks follow tasks that are trained one after the other?"""
    return bool(looks) and len(stream.tasks) > 1 and stream.strategy.data != "joint"


def _metrics(nll: np.ndarray, random: np.ndarray | None) -> dict[str, float]:
    """Of scores that are minus the mean NLL, equal weight for every task."""
    scores = -nll
    found = {
        "mean_nll": float(nll[-1].mean()),
        "perplexity": float(np.exp(nll[-1]).mean()),
        "start_nll": float(nll[0].mean()),
    }
    if len(nll) == nll.shape[1] + 1 and nll.shape[1] > 1:
        found |= {
            "backward_transfer": forgetting.backward_transfer(scores),
            "forward_transfer_from_start": forgetting.forward_transfer(scores),
            "forgetting": forgetting.forgetting(scores),
            "average_incremental": forgetting.average_incremental(scores),
            "learned_nll": float(np.mean([nll[i + 1, i] for i in range(nll.shape[1])])),
        }
        if random is not None:
            found["forward_transfer"] = forgetting.forward_transfer(scores, -random)
    return found


def _regained(nll: np.ndarray, recovered: Sequence[float]) -> dict[str, float]:
    """Backward transfer as it would be after the few steps of recovery."""
    own = [nll[i + 1, i] for i in range(len(recovered))]
    change = float(np.mean(np.asarray(own) - np.asarray(recovered)))
    return {
        "recovered_nll": float(np.mean(recovered)),
        "backward_transfer_after_recovery": change,
    }


def _stability(
    looks: Sequence[Mapping[str, Any]], stream: Stream, config: ContinualConfig
) -> dict[str, float]:
    every = config.measure.every
    if not every or not _told(stream, looks):
        return {}
    curves = -np.asarray([row["nll"] for row in looks])
    ends = [end // every for end in stream.ends]
    found = {
        "probe_mean_score": float(curves[ends[-1]].mean()),
        "min_score": forgetting.worst(curves[: ends[-1] + 1], ends),
        "worst_case_score": forgetting.worst_case(curves[: ends[-1] + 1], ends),
    }
    starts = [0, *ends[:-1]]
    found["learning_curve_area"] = forgetting.learning_curve_area(
        curves, starts, config.measure.first
    )
    back = [forgetting.recovery_looks(curves, ends, task) for task in range(len(ends) - 1)]
    found["tasks_back"] = float(np.mean([look is not None for look in back]))
    again = [every * look for look in back if look is not None]
    found["steps_back"] = float(np.mean(again)) if again else math.nan
    for window in config.measure.windows:
        found[f"windowed_forgetting_{window}"] = float(
            forgetting.windowed_forgetting(curves, window).mean()
        )
        found[f"windowed_plasticity_{window}"] = float(
            forgetting.windowed_plasticity(curves, window).mean()
        )
    return found


def compare(found: dict[str, dict[str, Any]], reference: str) -> None:
    """Add to every run's metrics how it stands against those of the run `reference`."""
    for row in found.values():
        row["above_reference_nll"] = row["mean_nll"] - found[reference]["mean_nll"]
        if "learned_nll" in row:
            row["intransigence"] = row["learned_nll"] - found[reference]["mean_nll"]


def effects_of(
    found: Mapping[str, Mapping[str, Any]], effects: Mapping[str, EffectConfig]
) -> dict[str, dict[str, Any]]:
    """Hedges' g of two groups of runs in every metric that all of them have and that varies.

    Args:
      found: metrics by label of the run.
      effects: see `EffectConfig`.
    Returns:
      name -> metric -> "g", "low", "high" and whether |g| is "non_trivial"; or the "problem" where
      the groups are too far apart for an interval.
    """
    compared = {}
    for name, groups in effects.items():
        compared[name] = {}
        rows = [[found[label] for label in group] for group in (groups.treatment, groups.control)]
        for metric in rows[0][0]:
            values: list[list[Any]] = [[row.get(metric) for row in group] for group in rows]
            if not all(isinstance(value, int | float) for group in values for value in group):
                continue
            if all(len(set(group)) == 1 for group in values):
                continue
            compared[name][metric] = _effect(*map(np.asarray, values))
    return compared


def _effect(treatment: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    try:
        found = hedges_g(treatment, control)
    except UserError as error:
        return {"problem": str(error)}
    about = {"g": found.g, "low": found.low, "high": found.high}
    return about | {"non_trivial": abs(found.g) > NON_TRIVIAL}


def check_effects(config: ContinualConfig) -> None:
    """Refuse groups of runs that are not there.

    Raises:
      UserError: a label that is no run's, or one in both groups.
    """
    for name, groups in config.effects.items():
        for label in (*groups.treatment, *groups.control):
            if label not in config.runs:
                hint = did_you_mean(label, config.runs)
                raise UserError(f"effects.{name}: there is no run {label!r}. {hint}")
        both = set(groups.treatment) & set(groups.control)
        if both:
            raise UserError(f"effects.{name}: {sorted(both)} are in both groups")
