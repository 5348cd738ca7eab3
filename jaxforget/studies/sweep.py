"""`jaxforget sweep`: many settings of one unlearning run, and which of them is best."""

import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
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
    finished,
    load_model,
    opened,
    peak_bytes,
)
from jaxforget.studies.evaluate import read_suite, run_suite
from jaxforget.studies.frontier import best_of, frontier_of, kept_by
from jaxforget.studies.member import traceable
from jaxforget.studies.population import Outcome, Population, train_population
from jaxforget.studies.reference import with_reference
from jaxforget.studies.roles import read_roles
from jaxforget.studies.settings import Member, alike, members_of, numbers, short_names
from jaxforget.studies.training import refuse_early

log = logging.getLogger(__name__)

FAILED = "its last train.max_skipped steps had a loss or gradient that is not finite"


@dataclass(frozen=True)
class Group:
    """Members that can be trained side by side.

    Attributes:
      lm: the starting model.
      sets: by role.
      members: of the group.
      traced: keys of the numbers that differ between them in one program.
    """

    lm: LanguageModel
    sets: Mapping[str, TokenisedSet]
    members: Sequence[Member]
    traced: tuple[str, ...] = ()


def sweep(
    config: SweepConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Train every setting, as many as possible in one program, judge all, export the best.

    Settings that differ in real numbers only (learning rate, weight decay, parameters of the
    method) or in the seed share a program; each other difference makes a program of its own.

    Args:
      config: a `SweepConfig`, the same as a nested mapping, or the path of its YAML file.
      events: see `Events`.
    Returns:
      See `Result`: parameters and metrics of the best setting. results.json holds all of them
      under "members", and the indices of the frontier and of the best one; `members/<index>/`
      has each one's metrics.jsonl and results.json.
    Raises:
      UserError: anything the user can mend.
    """
    config = configs.resolve(SweepConfig, config)
    members = members_of(config)
    with opened(config) as run:
        done = finished(run, config, write_page)
        if done is not None:
            return done
        watch, models = Stopwatch(), _models()
        events.stage("reading data")
        groups = [_read(models(group[0].config), group, run) for group in alike(members)]
        outcomes, programs = dict[int, Outcome](), 0
        for group in groups:
            for program in _programs(group, run, events):
                outcomes |= _train(program, config.at_once, run, events)
                programs += 1
        rows = [
            _judge(models(member.config), member, outcomes[member.index], run, events)
            for member in members
        ]
        results = _results(config, members, rows, programs, watch.seconds())
        best = members[results["best"]]
        params = merge_lora(outcomes[best.index].params)
        events.stage("exporting the best model")
        lm, dtype = models(best.config), best.config.export_dtype
        on_first(lambda: lm.save_pretrained(run.model, params=params, dtype=dtype))
        on_first(lambda: _finish(run, results))
    return Result(params, results["metrics"], run)


def _models() -> Callable[[UnlearnConfig], LanguageModel]:
    """The starting model of a configuration, each read once."""
    found: dict[tuple[Any, ...], LanguageModel] = {}

    def of(config: UnlearnConfig) -> LanguageModel:
        key = (config.model, config.dtype, config.train.compute, config.train.remat)
        if key not in found:
            found[key] = load_model(config)
        return found[key]

    return of


def _read(lm: LanguageModel, members: Sequence[Member], run: RunDirectory) -> Group:
    """Members that are alike and their data, all that could end in an error checked."""
    first = members[0].config
    assert first.evaluate is not None
    read_suite(first.evaluate, run)
    sets = read_roles(first, methods.from_config(first.method), lm, run)
    refuse_early(lm, sets, first.train, first.optimizer, first.lora)
    return Group(lm, sets, members)


def _programs(group: Group, run: RunDirectory, events: Events) -> list[Group]:
    """As few programs as members that are alike allow, their data scored."""
    lm, first = group.lm, group.members[0].config
    method = methods.from_config(first.method)
    if any(method.reference.values()):
        events.stage("scoring with the starting model")
    with first_before_others():
        seed = first.train.seed
        sets = with_reference(lm, group.sets, method.needs, folder=run.cache, seed=seed)
    values = [numbers(member.config) for member in group.members]
    varying = [key for key in values[0] if len({each[key] for each in values}) > 1]
    traced = traceable(lm, sets, first, varying, meshes.make_mesh(first.mesh)) if varying else []
    apart = [key for key in varying if key not in traced]
    found: dict[tuple[float, ...], list[Member]] = {}
    for member, each in zip(group.members, values, strict=True):
        found.setdefault(tuple(each[key] for key in apart), []).append(member)
    if apart:
        log.info("%d programs: one cannot hold several of %s", len(found), ", ".join(apart))
    return [Group(lm, sets, members, tuple(traced)) for members in found.values()]


def _train(
    program: Group, at_once: int | None, run: RunDirectory, events: Events
) -> dict[int, Outcome]:
    """What training leaves of every member, by its index."""
    members, config = program.members, program.members[0].config
    each = [numbers(member.config) for member in members]
    hyper = {key: np.asarray([one[key] for one in each], np.float32) for key in program.traced}
    events.stage(f"training {len(members)} settings of {config.method['name']} side by side")
    outcomes = train_population(
        program.lm,
        program.sets,
        Population([member.config for member in members], hyper, at_once),
        run=RunDirectory(run.path / "programs" / str(members[0].index)),
        mesh=meshes.make_mesh(config.mesh),
        listen=events.progress,
    )
    for member, outcome in zip(members, outcomes, strict=True):
        if outcome.failed:
            log.warning("%s: %s", member.name, FAILED)
    return {member.index: one for member, one in zip(members, outcomes, strict=True)}


def _judge(
    lm: LanguageModel, member: Member, outcome: Outcome, run: RunDirectory, events: Events
) -> dict[str, Any]:
    """The member's results, read where a killed sweep has them already."""
    if outcome.failed:
        return {"metrics": {}, "refused_steps": outcome.refused, "failed": FAILED}
    place = RunDirectory(run.path / "members" / str(member.index))
    key = config_digest(member.config)
    try:
        found = json.loads(place.results.read_text())
        if found["config_sha256"] == key:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    assert member.config.evaluate is not None
    events.stage(f"evaluating {member.name}")
    params = merge_lora(outcome.params)
    suite = run_suite(member.config.evaluate, lm, params, member.config, run, events)
    found = {
        "method": member.config.method["name"],
        **suite,
        "refused_steps": outcome.refused,
        "config_sha256": key,
    }
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
    oracle = next((row["oracle"] for row in rows if "oracle" in row), None)
    best = best_of(metrics, kept, oracle)
    if best is None:
        raise UserError(f"no setting has a finite forget_prob and {kept}: there is no best one")
    told = ("metrics", "refused_steps", "failed")
    return {
        "method": members[best].config.method["name"],
        "model": members[best].config.model,
        "metrics": metrics[best],
        "best": best,
        "frontier": frontier_of(metrics, kept),
        "members": [
            {
                "name": member.name,
                "overrides": dict(member.overrides),
                **{key: row[key] for key in told if key in row},
            }
            for member, row in zip(members, rows, strict=True)
        ],
        **({} if oracle is None else {"oracle": oracle}),
        "programs": programs,
        "seconds": seconds,
        "throughput": {"peak_bytes": peak_bytes()},
        **environment(),
        "config_sha256": config_digest(config),
    }


def table_of(run: RunDirectory) -> list[dict[str, Any]]:
    """A row for every setting of a finished sweep: `*` best, `+` on the frontier, `!` failed."""
    results = json.loads(run.results.read_text())
    members, rows = results["members"], []
    short = short_names(key for member in members for key in member["overrides"])
    for index, member in enumerate(members):
        mark = "+" if index in results["frontier"] else "!" if "failed" in member else ""
        settings = {short[key]: value for key, value in member["overrides"].items()}
        kept = ("forget_prob", "retain_prob", "model_utility")
        rows.append(
            {
                "": "*" if index == results["best"] else mark,
                **settings,
                **{key: member["metrics"].get(key) for key in kept},
            }
        )
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _finish(run: RunDirectory, results: Mapping[str, Any]) -> None:
    run.report.unlink(missing_ok=True)  # an older one must not outlive its results
    write_results(run, results)
    write_page(run)


def write_page(run: RunDirectory) -> None:
    """report.html of a finished sweep: every setting, the frontier and the best one marked."""
    from jaxforget.report import RunSummary, load_run, write_report

    results = json.loads(run.results.read_text())
    shown = []
    for index, member in enumerate(results["members"]):
        mark = "best: " if index == results["best"] else ""
        mark += "" if index in results["frontier"] else "(beaten) "
        if "failed" in member:
            shown.append(RunSummary(f"(failed) {member['name']}", {}))
            continue
        shown.append(load_run(run.path / "members" / str(index), f"{mark}{member['name']}"))
    write_report(shown, run.report, title=f"jaxforget sweep: {len(shown)} settings")
