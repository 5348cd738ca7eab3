"""From the looks of a run to what was gained of each kind of probe, and how it fades."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.config.acquire import LookConfig, PrimingConfig
from jaxforget.data.facts import Probe
from jaxforget.data.injection import Schedule
from jaxforget.engine.errors import UserError
from jaxforget.evals import acquisition as acq
from jaxforget.evals import fewshot_memory as memory
from jaxforget.evals.retention_fits import LAWS, best_fit
from jaxforget.studies.primed import primed

NET = "net_"
"""Begins measures of curves from which the mean of the control's was taken."""


def analyse(
    rows: Sequence[Mapping[str, Any]],
    schedule: Schedule,
    probes: Sequence[Probe],
    look: LookConfig,
    kinds: Sequence[str],
    priming: tuple[PrimingConfig, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Metrics and curves of a run, as JSON holds them.

    Args:
      rows: of every look: "step"; "logp" of all probes, and after them of all texts; "recall".
      schedule: who was presented when.
      probes: all of them.
      look: how curves are read.
      kinds: of probes, in order.
      priming: where it is looked at, how, and the category of every text.
    Returns:
      "groups": of every mode and kind of probe; "recall": of every mode; "priming": see
      `jaxforget.studies.primed`, None where it is not looked at; "metrics": numbers by
      name. Where there are facts of the mode "never", `net_` measures are those of the curves
      less the mean curve of these facts' probes of the same kind: what other text does is no part
      of them.
    """
    steps = np.asarray([row["step"] for row in rows])
    values = np.asarray([row["logp"] for row in rows], float)
    regular = (steps - schedule.start) % look.every == 0
    groups = [
        _group(steps[regular], values[regular], schedule, probes, look, mode, kind)
        for mode in dict.fromkeys(schedule.modes)
        for kind in kinds
    ]
    recalled = _recalled(rows, steps, values[:, len(probes) :], schedule)
    found: dict[str, Any] = {"groups": groups, "recall": recalled, "priming": None}
    metrics = _metrics(groups, recalled)
    if priming is not None:
        how, categories = priming
        own = values[regular][:, : len(probes)]
        found["priming"] = primed(steps[regular], own, schedule, probes, categories, how)
        metrics |= _priming_metrics(found["priming"])
    return _jsonable({"metrics": metrics, **found})


def _group(
    looks: np.ndarray,
    values: np.ndarray,
    schedule: Schedule,
    probes: Sequence[Probe],
    look: LookConfig,
    mode: str,
    kind: str,
) -> dict[str, Any]:
    def places(of: str) -> np.ndarray:
        found = [schedule.modes[probe.fact] == of and probe.kind == kind for probe in probes]
        return np.flatnonzero(found)

    own, control = places(mode), places("never")
    curves = values[:, own]
    facts = np.asarray([probes[place].fact for place in own])
    found: dict[str, Any] = {"mode": mode, "kind": kind, "probes": len(own)}
    if not len(own):
        return found
    found |= _aligned(looks, curves, facts, schedule)
    found |= _measures(looks, curves, facts, schedule, look, mode)
    if len(control) and mode != "never":
        net = curves - values[:, control].mean(axis=1, keepdims=True)
        measures = _measures(looks, net, facts, schedule, look, mode)
        found |= {NET + name: value for name, value in measures.items()}
    return found


def _aligned(
    looks: np.ndarray, curves: np.ndarray, facts: np.ndarray, schedule: Schedule
) -> dict[str, Any]:
    """Mean log-probability over updates since each fact's own first presentation."""
    begins = np.asarray([np.searchsorted(looks, schedule.steps(fact)[0]) for fact in facts])
    count = len(looks) - int(begins.max())
    rows = begins[None] + np.arange(count)[:, None]
    mean = curves[rows, np.arange(curves.shape[1])[None]].mean(axis=1)
    since = looks[:count] - looks[0]
    return {"curve": {"times": since.tolist(), "logp": mean.tolist()}}


def _measures(
    looks: np.ndarray,
    curves: np.ndarray,
    facts: np.ndarray,
    schedule: Schedule,
    look: LookConfig,
    mode: str,
) -> dict[str, Any]:
    """Gains, and unless nothing was presented retention, of one group's probes."""
    ends = [schedule.steps(fact)[-1] for fact in np.unique(facts).tolist()]
    times = acq.log_times(look.every, int(looks[-1]) - max(ends) - look.window)
    gains, rises, shares = [], [], []
    for fact in np.unique(facts).tolist():
        own, met = curves[:, facts == fact], schedule.steps(fact)
        best = acq.local_maximum(own, looks, met[-1], look.window)
        before = own[np.searchsorted(looks, met[0])]
        gains.append(own[best, np.arange(own.shape[1])] - before)
        rises.append(acq.effectivity(own, looks, met, look.window))
        shares.append(acq.retainability(own, looks, met, look.window, times))
    each = np.concatenate(rises, axis=1)
    found: dict[str, Any] = {
        "gain": float(acq.filtered_mean(np.concatenate(gains), look.outliers)),
        "effectivity": acq.filtered_mean(each, look.outliers).tolist(),
    }
    if mode == "never" or len(times) < 3:
        return found
    owners = np.concatenate(
        [np.full(part.shape[1], fact) for part, fact in zip(shares, np.unique(facts), strict=True)]
    )
    kept = acq.retention(
        times,
        np.concatenate(shares, axis=1),
        owners,
        factor=look.outliers,
        resamples=look.resamples,
    )
    return found | {"retention": _retention(kept)}


def _retention(kept: acq.Retention) -> dict[str, Any]:
    found = {
        "times": kept.times.tolist(),
        "mean": kept.mean.tolist(),
        "low": kept.low.tolist(),
        "high": kept.high.tolist(),
        "constant": kept.fit.constant,
        "constant_interval": list(kept.constant),
        "intercept": kept.fit.intercept,
        "r2": kept.fit.r2,
        "threshold": kept.fit.threshold,
        "threshold_interval": list(kept.threshold),
        "points": kept.fit.points,
        "probes": kept.probes,
    }
    try:
        best, fits = best_fit(kept.times[1:], kept.mean[1:], tuple(LAWS))
    except UserError:  # too few points, or a curve that no law follows
        return found
    laws = {
        law: {"c": fit.c, "b": fit.b, "r2": fit.r2, "aic": fit.aic, "half_life": fit.half_life}
        for law, fit in fits.items()
    }
    return found | {"law": best.law, "laws": laws}


def _recalled(
    rows: Sequence[Mapping[str, Any]], steps: np.ndarray, texts: np.ndarray, schedule: Schedule
) -> dict[str, Any]:
    """Recognition and recall by mode over the updates since the last presentation of all."""
    if not texts.shape[1]:
        return {}
    modes = np.asarray(schedule.modes)
    foils = np.flatnonzero(modes == "never")
    later = np.flatnonzero(steps >= schedule.end)
    tested = [place for place in later.tolist() if "recall" in rows[place]]
    found = {}
    for mode in dict.fromkeys(schedule.modes):
        own = np.flatnonzero(modes == mode)
        if mode == "never":
            continue
        against = np.resize(foils, len(own))
        known = [
            float(memory.recognition(-row[own], -row[against]).mean())
            for row in (texts[0], *texts[later])
        ]
        found[mode] = {"recognition": _kept(steps[later] - schedule.end, known[1:], known[0])}
        for name, start in rows[0]["recall"].items():
            means = [float(np.mean(np.asarray(rows[k]["recall"][name])[own])) for k in tested]
            floor = float(np.mean(np.asarray(start)[own]))
            found[mode][f"recall_{name}"] = _kept(steps[tested] - schedule.end, means, floor)
    return found


def _kept(times: np.ndarray, scores: Sequence[float], floor: float) -> dict[str, Any]:
    """A curve above its floor, and what is left of it; "half" is when less than half is."""
    if not len(scores):
        return {"times": [], "score": [], "floor": floor, "left": [], "half": math.nan}
    left = memory.share_left(np.asarray(scores), floor, scores[0])
    half = memory.first_below(times, left) if np.isfinite(left).all() else math.nan
    return {
        "times": times.tolist(),
        "score": list(scores),
        "floor": floor,
        "left": left.tolist(),
        "half": half,
    }


def _metrics(
    groups: Sequence[Mapping[str, Any]], recalled: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for group in groups:
        for net in ("", NET):
            if f"{net}gain" not in group:
                continue
            name = f"{group['mode']}/{group['kind']}/{net}"
            found[f"{name}gain"] = group[f"{net}gain"]
            found[f"{name}first_effectivity"] = group[f"{net}effectivity"][0]
            for key in ("constant", "r2", "threshold"):
                if f"{net}retention" in group:
                    found[f"{name}{key}"] = group[f"{net}retention"][key]
    for mode, measures in recalled.items():
        for name, curve in measures.items():
            if curve["score"]:
                found[f"{mode}/{name}/start"] = curve["score"][0]
                found[f"{mode}/{name}/end"] = curve["score"][-1]
                found[f"{mode}/{name}/half"] = curve["half"]
    return found


def _priming_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for group in found["groups"]:
        for name in ("memory", "priming"):
            about = f"{group['category']}/{group['mode']}/{name}"
            metrics[f"{about}_start"], metrics[f"{about}_end"] = group[name][0], group[name][-1]
    for name, value in (found["correlation"] or {}).items():
        metrics[f"priming_correlation_{name}"] = value
    return metrics


def _jsonable(tree: Any) -> Any:
    """Numbers that JSON lacks become null."""
    if isinstance(tree, Mapping):
        return {key: _jsonable(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_jsonable(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def curve_rows(results: Mapping[str, Any]) -> str:
    """All curves as CSV: measure, mode, kind, updates, value, low, high."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["measure", "mode", "kind", "updates", "value", "low", "high"])
    for group in results["groups"]:
        about = (group["mode"], group["kind"])
        if "curve" in group:
            for time, value in zip(*group["curve"].values(), strict=True):
                writer.writerow(["logp", *about, time, value, None, None])
        for net in ("", NET):
            kept = group.get(f"{net}retention")
            columns = [kept[name] for name in ("times", "mean", "low", "high")] if kept else []
            for row in zip(*columns, strict=True):
                writer.writerow([f"{net}retainability", *about, *row])
    for group in (results["priming"] or {"groups": ()})["groups"]:
        for name in ("memory", "priming"):
            for time, value in zip(group["times"], group[name], strict=True):
                writer.writerow([name, group["mode"], group["category"], time, value, None, None])
    for mode, measures in results["recall"].items():
        for name, curve in measures.items():
            for time, value in zip(curve["times"], curve["score"], strict=True):
                writer.writerow([name, mode, "text", time, value, None, None])
    return buffer.getvalue()
