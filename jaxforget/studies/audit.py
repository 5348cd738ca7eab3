"""`jaxforget audit`: the same attacks on a model, on the one before it forgot, and on an oracle."""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget import config as configs
from jaxforget.config import AuditConfig, UnlearnConfig
from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.template import Template
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_json
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.evals.attacks import SETS, Attack, AuditData, Finding, weight_changes
from jaxforget.evals.attacks.catalogue import DEFAULT, chosen, missing
from jaxforget.evals.attacks.compare import Comparison, compared, limits, verdict
from jaxforget.evals.suites.blur import BlurSuite, refuse_names
from jaxforget.models import Compute
from jaxforget.models.language_model import LanguageModel, load
from jaxforget.report.audit import write_audit
from jaxforget.studies.common import (
    SILENT,
    Events,
    Result,
    Stopwatch,
    config_digest,
    environment,
    longest,
    opened,
    peak_bytes,
)

log = logging.getLogger(__name__)

AUDITED, START, ORACLE = "audited", "start", "oracle"


@dataclasses.dataclass(frozen=True)
class Subjects:
    """What is audited, resolved from the audit's and the run's configuration.

    Attributes:
      models: paths or ids by name: "audited", "start", and "oracle" where there is one.
      sources: by set, those of `SETS` and further ones to relearn from.
      template, max_length: of every record.
    """

    models: Mapping[str, str]
    sources: Mapping[str, DataSource]
    template: Template
    max_length: int | None


def audit(
    config: AuditConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Attack a model that is said to have forgotten.

    Every finding is kept as soon as it is made: a killed audit continues where it stopped, and
    attacks can be added later.

    Args:
      config: an `AuditConfig`, the same as a nested mapping, the path of its YAML file, or of a
        run directory.
      events: see `Events`.
    Returns:
      `Result` whose metrics are the share of knowledge left under every attack.
    Raises:
      UserError: anything the user can mend.
    """
    if isinstance(config, (str, pathlib.Path)) and pathlib.Path(config).is_dir():
        config = AuditConfig(str(config))
    config = configs.resolve(AuditConfig, config)
    config = dataclasses.replace(config, run_dir=config.run_dir or f"{config.run}/audit")
    subjects = subjects_of(config)
    further = [{"name": "relearn", "text": n} for n in subjects.sources if n not in SETS]
    attacks = chosen([*DEFAULT, *further] if config.attacks is None else config.attacks)
    with opened(config) as run:
        watch, data = Stopwatch(), audit_data(config, subjects)
        attacks, left_out = _possible(attacks, data, explicit=config.attacks is not None)
        findings = _all_findings(config, subjects, attacks, data, run, events)
        comparisons = {
            label: compared({name: found[label] for name, found in findings.items()})
            for label, _, _ in attacks
        }
        events.stage("comparing weights")
        results = {
            "method": "audit",
            "model": config.run,
            "metrics": {label: each.left for label, each in comparisons.items()},
            "verdict": verdict(comparisons),
            "limits": limits(comparisons, left_out),
            "attacks": [_described(*attack, comparisons, findings) for attack in attacks],
            "weights": _weights(config, subjects),
            "throughput": {"peak_bytes": peak_bytes()},
            "seconds": watch.seconds(),
            **environment(),
            "config_sha256": config_digest(config),
        }
        write_results(run, results)
        on_first(lambda: write_audit(results, run.report, title=f"Audit of {config.run}"))
        return Result(None, results["metrics"], run)


def subjects_of(config: AuditConfig) -> Subjects:
    """Models and data, from the audited run where the audit does not name them.

    Raises:
      UserError: no such run, or something that neither names.
    """
    path = pathlib.Path(config.run) / "config.yaml"
    run = _run_of(path) if path.exists() else None
    start = config.start or (run.model if run else None)
    if start is None:
        raise UserError(f"start: {config.run} is no run directory; name the model before it forgot")
    models = {AUDITED: config.run, START: start}
    suite = run.evaluate if run else None
    oracle = config.oracle or getattr(suite, "oracle", None)
    if oracle is not None and (config.oracle or pathlib.Path(oracle).is_dir()):
        models[ORACLE] = oracle
    forget = config.forget or getattr(suite, "forget", None) or (run.forget if run else None)
    if forget is None:
        raise UserError("forget: name the records that were to be forgotten")
    retain = config.retain or (run.retain if run else None)
    refuse_names(config.further, "further")
    given = {
        "forget": forget,
        "retain": retain,
        "holdout": config.holdout,
        "unrelated": config.unrelated,
        **(suite.relearn if isinstance(suite, BlurSuite) else {}),
        **config.further,
    }
    return Subjects(
        models,
        {name: source for name, source in given.items() if source is not None},
        config.template or (run.template if run else Template()),
        config.max_length or (run.max_length if run else None),
    )


def _run_of(path: pathlib.Path) -> UnlearnConfig:
    try:
        return configs.load(UnlearnConfig, path)
    except UserError as error:
        raise UserError(f"{path} is not the configuration of an unlearning run:\n{error}") from None


def audit_data(config: AuditConfig, subjects: Subjects) -> AuditData:
    """The records of every set, at most `config.limit` of each.

    Raises:
      UserError: a set that cannot be read.
    """
    sets: dict[str, Sequence[Record]] = {
        name: load_records(source)[: config.limit] for name, source in subjects.sources.items()
    }
    if not sets.setdefault("retain", []):
        log.warning("no retain set: attacks that need one are left out")
    return AuditData(
        **{name: sets.pop(name) for name in SETS if name in sets},
        further=sets,
        mesh=make_mesh(config.mesh),
        template=subjects.template,
        max_length=subjects.max_length or 512,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )


type Chosen = tuple[str, Attack, Any]


def _possible(
    attacks: Sequence[Chosen], data: AuditData, *, explicit: bool
) -> tuple[list[Chosen], list[str]]:
    """(attacks whose data are there, what to say of the others)."""
    lacking = {label: missing(attack, settings, data) for label, attack, settings in attacks}
    left_out = [f"{label} (needs {', '.join(names)})" for label, names in lacking.items() if names]
    if explicit and left_out:
        raise UserError(f"attacks: {'; '.join(left_out)}. Give what they need.")
    return [each for each in attacks if not lacking[each[0]]], left_out


def _all_findings(
    config: AuditConfig,
    subjects: Subjects,
    attacks: Sequence[Chosen],
    data: AuditData,
    run: RunDirectory,
    events: Events,
) -> dict[str, dict[str, Finding]]:
    """By model and attack; one model is in memory at a time."""
    found: dict[str, dict[str, Finding]] = {}
    for name, path in subjects.models.items():
        lm = functools.cache(functools.partial(_loaded, config, subjects, path))
        found[name] = {}
        for label, attack, settings in attacks:
            identity = f"{_stamp(path)} {_digest(config, subjects)} {settings!r}"
            file = run.path / "findings" / name / f"{label}.json"
            kept = _kept(file, identity)
            if kept is None:
                events.stage(f"{name}: {label}")
                kept = attack.run(lm(), data, settings)
                on_first(lambda f=file, k=kept, i=identity: _keep(f, k, i))
            found[name][label] = kept
    return found


def _loaded(config: AuditConfig, subjects: Subjects, path: str) -> LanguageModel:
    lm = load(path, dtype=config.dtype, compute=Compute(dtype=config.compute))
    if lm.tokenizer is None:
        raise UserError(f"{path} has no tokenizer; add its tokenizer.json")
    longest(dataclasses.replace(config, max_length=subjects.max_length), lm)
    return lm


def _stamp(path: str) -> str:
    """What tells a model from another that is written to the same place later."""
    files = sorted(pathlib.Path(path).rglob("*.safetensors")) or [pathlib.Path(path)]
    known = [file.stat() for file in files if file.exists()]
    return f"{path} {[(each.st_size, each.st_mtime_ns) for each in known]}"


def _digest(config: AuditConfig, subjects: Subjects) -> str:
    """What a finding depends on besides the model itself: not on who else is audited."""
    free = {"run": "", "start": None, "oracle": None, "run_dir": None, "attacks": None}
    same = dataclasses.replace(config, **free, mesh=MeshConfig(), resume="auto")
    sources = {name: repr(source) for name, source in subjects.sources.items()}
    return f"{config_digest(same)} {sources} {subjects.template} {subjects.max_length}"


def _keep(file: pathlib.Path, finding: Finding, identity: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tree = dataclasses.asdict(finding)
    tree["each"] = None if finding.each is None else finding.each.tolist()
    write_json(file, {"identity": identity, "finding": tree})


def _kept(file: pathlib.Path, identity: str) -> Finding | None:
    """A finding made before on the same model, data and settings, or None."""
    if not file.exists():
        return None
    try:
        tree = json.loads(file.read_text())
        finding = tree["finding"]
        each = None if finding["each"] is None else np.asarray(finding["each"], np.float64)
        made = Finding(**{**finding, "each": each})
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged; attacking again", file)
        return None
    return made if tree.get("identity") == identity else None


def _described(
    label: str,
    attack: Attack,
    settings: Any,
    comparisons: Mapping[str, Comparison],
    findings: Mapping[str, Mapping[str, Finding]],
) -> dict[str, Any]:
    """One attack in results.json."""
    found = {name: mine[label] for name, mine in findings.items()}
    return {
        "label": label,
        "title": attack.title,
        "threat": attack.threat,
        "budget": attack.budget(settings),
        "measures": attack.measures,
        "source": attack.source,
        **dataclasses.asdict(comparisons[label]),
        "scores": {name: dict(each.scores) for name, each in found.items()},
        "curves": {name: dict(each.curves) for name, each in found.items()},
        "examples": {name: list(each.examples) for name, each in found.items()},
    }


def _weights(config: AuditConfig, subjects: Subjects) -> Mapping[str, Any] | None:
    """Distance of the audited weights to those before; None for other architectures."""
    before, after = (load(subjects.models[name], dtype=config.dtype) for name in (START, AUDITED))
    try:
        return weight_changes(before.params, after.params)
    except UserError as error:
        log.warning("%s", error)
        return None


def summary(run: RunDirectory) -> tuple[str, list[dict[str, Any]]]:
    """(the verdict, a row an attack) of a finished audit, for the terminal."""
    results = json.loads(run.results.read_text())
    rows = []
    for each in results["attacks"]:
        known = {name: each["known"].get(name) for name in (START, AUDITED, ORACLE)}
        interval = "" if each["low"] is None else f"{each['low']:.2f} to {each['high']:.2f}"
        rows.append({"attack": each["label"], **known, "left": each["left"], "95 %": interval})
    return results["verdict"], rows
