"""`jaxforget sweep`: many settings of one unlearning run, and which of them is best."""

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
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
from jaxforget.studies.population import (
    SEED,
    Population,
    Trained,
    can_trace,
    train_population,
)
from jaxforget.studies.reference import with_reference
from jaxforget.studies.roles import read_roles
from jaxforget.studies.sweep_settings import Member, alike, is_number, members_of
from jaxforget.studies.training import refuse_early

log = logging.getLogger(__name__)


def sweep(
    config: SweepConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Train every setting, as many as possible in one program, judge all, export the best.

    Settings that differ in numbers only (learning rate, weight decay, parameters of the method,
    seed) share a program; each other difference makes a program of its own. A setting whose steps
    stop being finite stops no other; it is told, and neither judged nor chosen.

    Args:
      config: a `SweepConfig`, the same as a nested mapping, or the path of its YAML file.
      events: see `Events`.
    Returns:
      See `Result`: parameters and metrics of the best setting. results.json holds all of them
      under "members", with what was refused of their steps, and the indices of the frontier and
      of the best one.
    Raises:
      UserError: anything the user can mend; also where no setting was left to judge.
    """
    config = configs.resolve(SweepConfig, config)
    members = members_of(config)
    with opened(config) as run:
        watch, programs = Stopwatch(), 0
        trained: dict[int, Trained] = {}
        lm = load_model(members[0].config)
        for members_alike in alike(members):
            more, count = _train(lm, members_alike, config.at_once, run, events)
            trained |= more
            programs += count
        rows = [_judge(lm, member, trained[member.index], run, events) for member in members]
        results = _results(config, members, rows, programs, watch.seconds())
        params = merge_lora(trained[results["best"]].leaves)
        events.stage("exporting the best model")
        on_first(lambda: lm.save_pretrained(run.model, params=params))
        on_first(lambda: _finish(run, results, members))
    return Result(params, results["metrics"], run)


def _train(
    lm: LanguageModel,
    members: Sequence[Member],
    at_once: int | None,
    run: RunDirectory,
    events: Events,
) -> tuple[dict[int, Trained], int]:
    """(every member after its training by index, number of programs)."""
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
    found: dict[int, Trained] = {}
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
        found |= {member.index: one for member, one in zip(group, trained, strict=True)}
    for member in members:
        if found[member.index].diverged:
            log.warning("%s diverged: it is neither judged nor chosen", member.name)
    return found, len(groups)


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
    chosen = [("method", key) for key, value in config.method.items() if is_number(value)]
    return [("optimizer", "learning_rate"), ("optimizer", "weight_decay"), *chosen]


def _value(config: UnlearnConfig, key: str) -> Any:
    part, name = key.split(".")
    return config.method[name] if part == "method" else getattr(getattr(config, part), name)


def _judge(
    lm: LanguageModel, member: Member, trained: Trained, run: RunDirectory, events: Events
) -> dict[str, Any]:
    """The member's results, read where a killed sweep has them already."""
    steps = {"refused_steps": trained.refused, "diverged": trained.diverged}
    if trained.diverged:
        return {"metrics": {}, **steps}
    place = RunDirectory(run.path / "members" / str(member.index))
    key = config_digest(member.config)
    try:
        found = json.loads(place.results.read_text())
        if found["config_sha256"] == key:
            return {**found, **steps}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    suite = member.config.evaluate
    assert suite is not None
    events.stage(f"evaluating {member.name}")
    params = merge_lora(trained.leaves)
    found = run_suite(suite, lm, params, member.config, run, events, place=place)
    found = {"method": member.config.method["name"], **found, "config_sha256": key}
    on_first(lambda: write_results(place, found))
    return {**found, **steps}


def _results(
    config: SweepConfig,
    members: Sequence[Member],
    rows: Sequence[Mapping[str, Any]],
    programs: int,
    seconds: float,
) -> dict[str, Any]:
    metrics = [row["metrics"] for row in rows]
    judged = [row for row in rows if not row["diverged"]]
    if not judged:
        raise UserError(
            "every setting diverged: lower optimizer.learning_rate or the forget weight, or "
            "compute in float32"
        )
    kept, oracle = kept_by([row["metrics"] for row in judged]), judged[0].get("oracle")
    best = best_of(metrics, kept, oracle)
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
            {
                "overrides": dict(member.overrides),
                **{key: row[key] for key in ("metrics", "refused_steps", "diverged")},
            }
            for member, row in zip(members, rows, strict=True)
        ],
        **({} if oracle is None else {"oracle": oracle}),
        "programs": programs,
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        **environment(),
        "config_sha256": config_digest(config),
    }


def table_of(run: RunDirectory) -> list[dict[str, Any]]:
    """A row for every setting of a finished sweep, for the terminal.

    `*` is the best, `+` on the frontier, `diverged` was not judged.
    """
    results = json.loads(run.results.read_text())
    rows = []
    for index, member in enumerate(results["members"]):
        mark = "*" if index == results["best"] else "+" if index in results["frontier"] else ""
        mark = "diverged" if member["diverged"] else mark
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
    judged = (each for each in members if not results["members"][each.index]["diverged"])
    for member in judged:
        mark = "best: " if member.index == results["best"] else ""
        mark += "" if member.index in frontier else "(beaten) "
        folder = run.path / "members" / str(member.index)
        shown.append(load_run(folder, f"{mark}{member.name}"))
    write_report(shown, run.report, title=f"jaxforget sweep: {len(shown)} settings")
