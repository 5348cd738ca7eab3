"""`jaxforget sweep`: many settings of one unlearning run, and which of them is best."""

import itertools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.config import SweepConfig, UnlearnConfig
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.processes import first_before_others, on_first
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.models.language_model import LanguageModel
from jaxforget.models.lora import merge_lora
from jaxforget.studies.common import (
    SILENT,
    Events,
    Result,
    Stopwatch,
    config_digest,
    environment,
    load_model,
    opened,
    peak_bytes,
)
from jaxforget.studies.evaluate import run_suite
from jaxforget.studies.frontier import best_of, frontier_of, kept_by
from jaxforget.studies.population import SEED, Population, can_trace, train_population
from jaxforget.studies.reference import with_reference
from jaxforget.studies.roles import read_roles, refuse_missing
from jaxforget.studies.training import refuse_early

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One setting of a sweep.

    Attributes:
      index: its place, from 0.
      overrides: what distinguishes it, by dotted key.
      config: the whole configuration.
    """

    index: int
    overrides: Mapping[str, Any]
    config: UnlearnConfig

    @property
    def name(self) -> str:
        """For tables and plots."""
        return " ".join(f"{key.split('.')[-1]}={value}" for key, value in self.overrides.items())


def sweep(
    config: SweepConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Train every setting, as many as possible in one program, judge all, export the best.

    Settings that differ in numbers only (learning rate, weight decay, parameters of the method,
    seed) share a program; each other difference makes a program of its own.

    Args:
      config: a `SweepConfig`, the same as a nested mapping, or the path of its YAML file.
      events: see `Events`.
    Returns:
      See `Result`: parameters and metrics of the best setting. results.json holds all of them
      under "members", the frontier's and the best one's indices.
    Raises:
      UserError: anything the user can mend.
    """
    config = configs.resolve(SweepConfig, config)
    members = members_of(config)
    with opened(config) as run:
        watch, leaves, programs = Stopwatch(), {}, 0
        lm = load_model(members[0].config)
        for members_alike in _alike(members):
            trained, count = _train(lm, members_alike, config.at_once, run, events)
            leaves |= trained
            programs += count
        rows = [_judge(lm, member, leaves[member.index], run, events) for member in members]
        results = _results(config, members, rows, programs, watch.seconds())
        params = merge_lora(leaves[results["best"]])
        events.stage("exporting the best model")
        on_first(lambda: lm.save_pretrained(run.model, params=params))
        on_first(lambda: _finish(run, results, members))
    return Result(params, results["metrics"], run)


def members_of(config: SweepConfig) -> list[Member]:
    """Every setting of a sweep, checked.

    Raises:
      UserError: nothing to vary, a key of a run's own, an invalid setting, no `evaluate`, or a
        method that cannot be trained side by side.
    """
    names = list(config.grid)
    empty = [key for key in names if not len(config.grid[key])]
    if empty or not (names or config.settings):
        raise UserError(
            f"grid.{empty[0]}: has no values"
            if empty
            else "grid, settings: there is nothing to vary"
        )
    for key in ("run_dir", "resume"):
        if key in config.base:
            raise UserError(f"base.{key}: belongs to the sweep, not to its settings")
    combinations = itertools.product(*(config.grid[key] for key in names))
    found = []
    for values, more in itertools.product(combinations, config.settings or ({},)):
        overrides = {**dict(zip(names, values, strict=True)), **more}
        tree = configs.overridden(config.base, overrides)
        place = str(pathlib.Path(config.run_dir) / "members" / str(len(found)))
        built = configs.build(UnlearnConfig, {**tree, "run_dir": place}, "base")
        member = Member(len(found), overrides, built)
        _refuse(member)
        found.append(member)
    return found


def _refuse(member: Member) -> None:
    config, method = member.config, methods.from_config(member.config.method)
    if config.evaluate is None:
        raise UserError("base.evaluate: a sweep compares its settings by it; name the suite's sets")
    for key in ("evaluate_every", "select"):
        if getattr(config.train, key):
            raise UserError(f"base.train.{key}: a sweep judges its settings at the end")
    if config.requests:
        raise UserError("base.requests: a sweep forgets one set; run several requests one by one")
    if method.objective is None or method.edit is not None:
        raise UserError(
            f"base.method: {method.name} edits the weights; a sweep trains its settings"
        )
    if method.own_text is not None:
        raise UserError(
            f"base.method: {method.name} makes a forget set for every setting; run them one by one"
        )
    if method.prepare is not None:
        raise UserError(
            f"base.method: {method.name} with a mask measured on the data is not trained side by "
            "side; run its settings one by one"
        )
    refuse_missing(config, method)


def _alike(members: Sequence[Member]) -> list[list[Member]]:
    """Members whose configurations are equal but for numbers that one program might hold."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        tree = configs.as_tree(member.config)
        del tree["run_dir"], tree["train"]["seed"]
        for key in ("learning_rate", "weight_decay"):
            del tree["optimizer"][key]
        tree["method"] = {
            key: "number" if _is_number(value) else value for key, value in tree["method"].items()
        }
        groups.setdefault(json.dumps(tree, sort_keys=True, default=str), []).append(member)
    return list(groups.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _train(
    lm: LanguageModel,
    members: Sequence[Member],
    at_once: int | None,
    run: RunDirectory,
    events: Events,
) -> tuple[dict[int, Any], int]:
    """(leaves of every member by index, number of programs)."""
    config = members[0].config
    method, mesh = methods.from_config(config.method), meshes.make_mesh(config.mesh)
    events.stage("reading data")
    sets = read_roles(config, method, lm, run)
    refuse_early(lm, sets, config.train, config.optimizer, config.lora)
    if any(method.reference.values()):
        events.stage("scoring with the starting model")
    with first_before_others():
        seed = config.train.seed
        sets = with_reference(lm, sets, method.needs, folder=run.cache, seed=seed)
    groups = _programs(lm, sets, members, method.needs.random)
    leaves: dict[int, Any] = {}
    for traced, group in groups:
        names = {
            key: np.asarray([_value(member.config, key) for member in group], np.float32)
            for key in traced
        }
        events.stage(f"training {len(group)} settings of {method.name} side by side")
        trained = train_population(
            lm,
            sets,
            Population([member.config for member in group], names, at_once),
            run=RunDirectory(run.path / "programs" / str(group[0].index)),
            mesh=mesh,
            listen=events.progress,
        )
        leaves |= {member.index: one for member, one in zip(group, trained, strict=True)}
    return leaves, len(groups)


def _programs(
    lm: LanguageModel, sets: Mapping[str, TokenisedSet], members: Sequence[Member], random: Any
) -> list[tuple[list[str], list[Member]]]:
    """(keys that differ within the program, its members), for as few programs as possible."""
    first = members[0].config
    keys = [f"{part}.{key}" for part, key in _numbers(first)]
    varying = [key for key in keys if len({_value(m.config, key) for m in members}) > 1]
    mesh = meshes.make_mesh(first.mesh)
    traced = [key for key in varying if can_trace(lm, sets, first, key, mesh)]
    apart = [key for key in varying if key not in traced] + ([SEED] if random else [])
    groups: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        groups.setdefault(tuple(_value(member.config, key) for key in apart), []).append(member)
    if len(groups) > 1:
        log.info("%d programs: one cannot hold several values of %s", len(groups), ", ".join(apart))
    return [(traced, group) for group in groups.values()]


def _numbers(config: UnlearnConfig) -> list[tuple[str, str]]:
    chosen = [("method", key) for key, value in config.method.items() if _is_number(value)]
    return [("optimizer", "learning_rate"), ("optimizer", "weight_decay"), *chosen]


def _value(config: UnlearnConfig, key: str) -> Any:
    part, name = key.split(".")
    return config.method[name] if part == "method" else getattr(getattr(config, part), name)


def _judge(
    lm: LanguageModel, member: Member, leaves: Any, run: RunDirectory, events: Events
) -> dict[str, Any]:
    """The member's results, read where a killed sweep has them already."""
    place = RunDirectory(run.path / "members" / str(member.index))
    key = config_digest(member.config)
    try:
        found = json.loads(place.results.read_text())
        if found["config_sha256"] == key:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    suite = member.config.evaluate
    assert suite is not None
    events.stage(f"evaluating {member.name}")
    params = merge_lora(leaves)
    found = run_suite(suite, lm, params, member.config, run, events, place=place)
    found = {"method": member.config.method["name"], **found, "config_sha256": key}
    on_first(lambda: write_results(place, found))
    return found


def _results(
    config: SweepConfig,
    members: Sequence[Member],
    rows: Sequence[Mapping[str, Any]],
    programs: int,
    seconds: float,
) -> dict[str, Any]:
    metrics = [row["metrics"] for row in rows]
    kept = kept_by(metrics)
    best = best_of(metrics, kept, rows[0].get("oracle"))
    if best is None:
        raise UserError(
            f"no setting has a forget probability and a {kept.replace('_', ' ')}: let "
            "`base.evaluate` name a forget and a retain set"
        )
    return {
        "method": members[best].config.method["name"],
        "model": members[best].config.model,
        "metrics": metrics[best],
        "best": best,
        "frontier": frontier_of(metrics, kept),
        "members": [
            {"overrides": dict(member.overrides), "metrics": row}
            for member, row in zip(members, metrics, strict=True)
        ],
        **({"oracle": rows[0]["oracle"]} if "oracle" in rows[0] else {}),
        "programs": programs,
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        **environment(),
        "config_sha256": config_digest(config),
    }


def table_of(run: RunDirectory) -> list[dict[str, Any]]:
    """A row for every setting of a finished sweep, for the terminal: `*` best, `+` frontier."""
    results = json.loads(run.results.read_text())
    rows = []
    for index, member in enumerate(results["members"]):
        mark = "*" if index == results["best"] else "+" if index in results["frontier"] else ""
        settings = {key.split(".")[-1]: value for key, value in member["overrides"].items()}
        kept = ("forget_prob", "retain_prob", "model_utility")
        rows.append({"": mark, **settings, **{key: member["metrics"].get(key) for key in kept}})
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _finish(run: RunDirectory, results: Mapping[str, Any], members: Sequence[Member]) -> None:
    from jaxforget.report import load_run, write_report

    write_results(run, results)
    frontier = set(results["frontier"])
    shown = []
    for member in members:
        mark = "best: " if member.index == results["best"] else ""
        mark += "" if member.index in frontier else "(beaten) "
        folder = run.path / "members" / str(member.index)
        shown.append(load_run(folder, f"{mark}{member.name}"))
    write_report(shown, run.report, title=f"jaxforget sweep: {len(members)} settings")
