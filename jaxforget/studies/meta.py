"""`jaxforget audit --meta`: models whose knowledge is known judge the metrics."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxforget import config as configs
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory, write_results
from jaxforget.evals.attacks.quantise import quantised
from jaxforget.evals.meta import Altered, Verdict, judged
from jaxforget.models.language_model import load
from jaxforget.report.meta import as_csv, write_meta
from jaxforget.studies.common import (
    SILENT,
    Events,
    Result,
    Stopwatch,
    config_digest,
    environment,
    opened,
)
from jaxforget.studies.evaluate import evaluate
from jaxforget.studies.meta_plan import (
    IGNORANT,
    KNOWING,
    ORACLE,
    MetaConfig,
    forgetting,
    pool,
    relearning,
    rounding,
    teaching,
    write_data,
)
from jaxforget.studies.unlearn import finetune, unlearn

BESIDE_ITSELF = {"forget_quality": 1.0, "mia_reference_auc": 0.5}
"""What the metrics that compare with the oracle say of the oracle."""

BLIND = 0.6
"""A metric whose faithfulness is below this tells knowledge from ignorance hardly at all."""


def meta(
    config: MetaConfig | Mapping[str, Any] | str | pathlib.Path, events: Events = SILENT
) -> Result:
    """Judge every metric of the suite on models that are trained for it.

    Two pools of models are trained on the embedded benchmark, with and without the knowledge in
    question; the metrics are to tell them apart. Some models of the first pool then forget by
    several methods, relearn a little and are rounded; the metrics are not to change more than the
    knowledge does. Every model has a run directory of its own: a killed study continues.

    Args:
      config: a `MetaConfig`, the same as a nested mapping, or the path of its YAML file.
      events: see `Events`.
    Returns:
      `Result` whose metrics are the overall score of every metric, best first.
    Raises:
      UserError: anything the user can mend.
    Source: Dorna et al. 2025, OpenUnlearning (arXiv 2506.12618), whose code is not published:
      the kinds of models in the pools, their training and all sizes are chosen here.
    """
    config = configs.resolve(MetaConfig, config)
    if len(set(config.methods)) < len(config.methods) or not config.methods:
        raise UserError("methods: name at least one, and each once")
    for method in config.methods:
        if method.rpartition("-")[0] in (*KNOWING, *IGNORANT) or method in ("data", "rounded"):
            raise UserError(f"methods: {method!r} is the name of something else")
    with opened(config) as run:
        watch, root = Stopwatch(), run.path
        on_first(lambda: write_data(config, root / "data"))
        found = _all_metrics(config, root, events)
        verdicts = [dataclasses.asdict(each) for each in _verdicts(config, found)]
        results = {
            "method": "meta",
            "metrics": {each["metric"]: each["overall"] for each in verdicts},
            "verdict": in_words(verdicts),
            "verdicts": verdicts,
            "models": found,
            "pools": {"knowing": pool(config, KNOWING), "ignorant": pool(config, IGNORANT)},
            "unlearned": list(config.methods),
            "seconds": watch.seconds(),
            **environment(),
            "config_sha256": config_digest(config),
        }
        write_results(run, results)
        on_first(lambda: write_atomically(root / "metrics.csv", as_csv(results["verdicts"])))
        on_first(lambda: write_meta(results, run.report))
        return Result(None, results["metrics"], run)


def _all_metrics(
    config: MetaConfig, root: pathlib.Path, events: Events
) -> dict[str, Mapping[str, float | None]]:
    """The suite's metrics of every model; the oracle comes first, as others compare with it."""
    pools = [*pool(config, IGNORANT), *pool(config, KNOWING)]
    found: dict[str, Mapping[str, float | None]] = {}
    for name in sorted(pools, key=lambda each: each != ORACLE):
        events.stage(f"teaching {name}")
        found[name] = finetune(teaching(root, config, name), events).metrics
    found[ORACLE] = {**found[ORACLE], **BESIDE_ITSELF}
    for method in config.methods:
        events.stage(f"unlearning by {method}")
        found[method] = unlearn(forgetting(root, config, method), events).metrics
    for name in (ORACLE, *config.methods):
        events.stage(f"relearning of {name}")
        found[f"{name}-relearned"] = finetune(relearning(root, config, name), events).metrics
    for name in config.methods:
        events.stage(f"rounding of {name}")
        found[f"{name}-rounded"] = _rounded(config, root, name)
    return found


def _rounded(config: MetaConfig, root: pathlib.Path, name: str) -> Mapping[str, float | None]:
    own = rounding(root, config, name)
    lm = load(str(root / name))
    params = jax.jit(lambda leaves: quantised(leaves, bits=config.bits))(lm.params)
    on_first(lambda: lm.save_pretrained(own.model, params=params))
    return evaluate(own).metrics


def _verdicts(config: MetaConfig, found: Mapping[str, Mapping[str, float | None]]) -> list[Verdict]:
    def altered(name: str, how: str) -> Altered:
        return Altered(name, found[name], found[f"{name}-{how}"])

    return judged(
        [found[name] for name in pool(config, KNOWING)],
        [found[name] for name in pool(config, IGNORANT)],
        [altered(name, "relearned") for name in config.methods],
        altered(ORACLE, "relearned"),
        [altered(name, "rounded") for name in config.methods],
    )


def in_words(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Which metrics to rely on, in a sentence or two."""
    told = [each for each in verdicts if each["overall"] is not None]
    if not told:
        return "No metric could be judged."
    best, worst = told[0], told[-1]
    found = [f"Rely on {best['metric']} first (overall {best['overall']:.2f})"]
    if len(told) > 1:
        found.append(f"and on {worst['metric']} last ({worst['overall']:.2f})")
    blind = [each["metric"] for each in told if each["faithfulness"] < BLIND]
    more = f" Hardly better than chance: {', '.join(blind)}." if blind else ""
    return f"{', '.join(found)}.{more}"


def summary(run: RunDirectory) -> tuple[str, list[dict[str, Any]]]:
    """(the verdict, a row a metric) of a finished meta-evaluation, for the terminal."""
    results = json.loads(run.results.read_text())
    return results["verdict"], results["verdicts"]
