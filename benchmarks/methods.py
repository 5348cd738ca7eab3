"""Every method on the fictitious people, against retraining: one table over several seeds.

    python benchmarks/methods.py --seeds 0 1 2 --out runs/methods
    python benchmarks/methods.py --chosen      # the settings of docs/results.md, without the search

A model learns all people, an oracle all but those to forget. Every method starts from the first,
with equal batches and epochs; its settings are the nearest to the oracle of a small grid (`GRIDS`)
on the first seed, and are kept for the others; with `--chosen` they are those that this gave when
docs/results.md was written (chosen_methods.json). A killed call continues where it stopped. Writes
methods.json and prints the table. `distance` is the root mean square difference to the oracle of
forget probability, forget ROUGE, retain probability and model utility.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jaxforget import methods  # noqa: E402
from jaxforget.config import UnlearnConfig, build  # noqa: E402
from jaxforget.data.fictitious import write  # noqa: E402
from jaxforget.data.sources import DataSource  # noqa: E402
from jaxforget.engine.errors import UserError  # noqa: E402
from jaxforget.engine.files import write_json  # noqa: E402
from jaxforget.report import load_run  # noqa: E402
from jaxforget.studies.quickstart import judging, teaching  # noqa: E402
from jaxforget.studies.unlearn import finetune, unlearn  # noqa: E402

JUDGED = ("forget_prob", "forget_rouge", "retain_prob", "model_utility")
RATES = (2e-4, 6e-4, 2e-3)
HOLDOUT = 30  # people nobody reads about, for audits


def grid(rates: Sequence[float] = RATES, **parameters: Sequence[Any]) -> list[dict]:
    """Every combination of learning rate and parameters."""
    found: list[dict] = [{"rate": rate} for rate in rates]
    for name, values in parameters.items():
        found = [{**each, name: value} for each in found for value in values]
    return found


GEOMETRIC = {"name": "geometric_disentangle"}
GRIDS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "amnesiac": grid([1.0], share=["whole", "proportional"]),
    "adaptive_rmu": grid(layer=[1], retain_weight=[10.0, 100.0]),
    "dpo": grid(beta=[0.1, 0.3]),
    "npo": grid(beta=[0.1, 0.3]),
    "ofmu": grid(normalise=[False], inner_steps=[1, 3]),
    "rmu": grid(layer=[1], retain_weight=[10.0, 100.0]),
    "scrub": grid(until=[0.2, 0.4, 0.8]),
    "simnpo": grid(beta=[2.5, 4.5], forget_weight=[0.125, 1.0]),
    "satimp": grid(forget_weight=[0.1, 1.0]),
    "ssd": grid([1.0], alpha=[2.0, 5.0, 10.0]),
    "task_arithmetic": grid([2e-4], scale=[0.5, 1.0, 2.0, 4.0]),
    "iau": grid([1.0], learning_rate=[1e-4, 3e-4, 1e-3]),
    "woodfisher": grid([1.0], scale=[1.0, 10.0, 100.0]),
    "fisher_forgetting": grid([1.0], alpha=[1e-6, 1e-5], limit=[1e-3, 1e-2]),
    # the tiny model has never read a refusal, so that its token needs long teaching; no eigenvalue
    # of what its keys preserve is below the paper's 0.02
    "unierase": grid(
        [1.0], plain_epochs=[200], plain_rate=[1e-2], lam=[0.5, 10.0], threshold=[0.1, 1.0, None]
    ),
    "undial": grid(retain=["none", "nll"]),
    "ce_u": grid(retain=["none", "nll"]),
    "graddiff+gu": grid(combiner=[GEOMETRIC]),
    "npo+gu": grid(beta=[0.1, 0.3], combiner=[GEOMETRIC]),
    "simnpo+gu": grid(beta=[2.5, 4.5], forget_weight=[0.125, 1.0], combiner=[GEOMETRIC]),
    "graddiff+pcgrad": grid(combiner=["pcgrad"]),
    "graddiff+gru": grid(combiner=["gru"]),
    "npo+top_k": grid(beta=[0.3], finishers=[[{"name": "keep_top_k", "share": 0.2}]]),
}
"""Settings tried on the first seed; learning rates alone for the methods that are not named."""

CHOSEN: Mapping[str, Mapping[str, Any]] = json.loads(
    (ROOT / "benchmarks" / "chosen_methods.json").read_text()
)
"""What the search over `GRIDS` found when docs/results.md was written."""


def lanes() -> list[str]:
    """Every method of the catalogue, and those with another combiner or finisher."""
    return sorted({*methods.names(), *GRIDS})


def main() -> None:
    """Parse, run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--methods", nargs="*", choices=lanes(), default=lanes())
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--chosen", action="store_true", help="take CHOSEN instead of a search")
    options = parser.parse_args()
    from rich.console import Console

    from jaxforget.cli import quiet_logs
    from jaxforget.report.tables import plain_table

    quiet_logs()
    rows = []
    for name in ("oracle", "finetuned"):
        found = [_taught(options.out / str(seed), name, seed) for seed in options.seeds]
        rows.append(_row(name, {}, found, None))
    oracles = [_taught(options.out / str(seed), "oracle", seed) for seed in options.seeds]
    rows[1] = _row("finetuned", {}, found, oracles)
    for name in options.methods:
        print(name, file=sys.stderr, flush=True)
        chosen = _choose(options, name, oracles[0])
        if chosen is None:
            continue
        found = [_forgot(options, name, chosen, seed) for seed in options.seeds]
        rows.append(_row(name, chosen, found, oracles))
        write_json(options.out / "methods.json", {"seeds": options.seeds, "rows": rows})
    (options.out / "methods.md").write_text(markdown(rows) + "\n")
    Console(width=160).print(plain_table([_printed(row) for row in rows]))


def _choose(options: Any, name: str, oracle: Mapping[str, float]) -> Mapping[str, Any] | None:
    if options.chosen:
        if name not in CHOSEN:
            raise UserError(f"{name}: nothing is chosen for it; leave --chosen away to search")
        return CHOSEN[name]
    tried = []
    for choice in GRIDS.get(name, grid()):
        try:
            found = _forgot(options, name, choice, options.seeds[0])
        except UserError as error:
            print(f"{name} {choice}: {error}", file=sys.stderr, flush=True)
            continue
        tried.append((distance(found, oracle), json.dumps(choice)))
    return json.loads(min(tried)[1]) if tried else None


def _taught(root: pathlib.Path, name: str, seed: int) -> dict[str, float]:
    if not (root / "data" / "config.json").exists():
        write(root / "data", seed, holdout_people=HOLDOUT)
    if name == "finetuned":
        _taught(root, "oracle", seed)
    files = {"oracle": "train_without_forget", "finetuned": "train_full"}
    finetune(teaching(root, name, files[name], seed))
    return load_run(root / name, name).row()


def _recorded(root: pathlib.Path, seed: int) -> pathlib.Path:
    """The updates that taught `finetuned` the people to forget: the same run once more."""
    again = teaching(root, "recorded", "train_full", seed)
    finetune(dataclasses.replace(again, record_updates=DataSource(str(root / "data/forget.jsonl"))))
    return root / "recorded" / "updates"


def _forgot(options: Any, name: str, choice: Mapping[str, Any], seed: int) -> dict[str, float]:
    root = options.out / str(seed)
    given = {key: value for key, value in choice.items() if key != "rate"}
    method = {"name": name.split("+")[0], **given}
    if name == "amnesiac":
        method["updates"] = str(_recorded(root, seed))
    label = "-".join(
        f"{value}" if not isinstance(value, (dict, list)) else "x" for value in choice.values()
    )
    config = {
        "model": str(root / "finetuned"),
        "forget": str(root / "data" / "forget.jsonl"),
        "retain": str(root / "data" / "retain.jsonl"),
        "general": str(root / "data" / "world_facts.jsonl"),
        "method": method,
        "run_dir": str(root / f"{name}-{label}"),
        "max_length": 128,
        "train": {"epochs": options.epochs, "batch_size": 32, "seed": seed, "keep": 1},
        "optimizer": {"learning_rate": choice["rate"], "warmup_fraction": 0.1},
        "evaluate": judging(root, oracle=True),
    }
    unlearn(build(UnlearnConfig, config, "methods"))
    return load_run(root / f"{name}-{label}", name).row()


def distance(found: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """Root mean square difference of `JUDGED` to the oracle; infinite where one is not finite."""
    gaps = [float(found[key]) - float(oracle[key]) for key in JUDGED]
    value = math.sqrt(sum(gap * gap for gap in gaps) / len(gaps))
    return value if math.isfinite(value) else math.inf


def _row(
    name: str,
    choice: Mapping[str, Any],
    found: Sequence[Mapping[str, float]],
    oracles: Sequence[Mapping[str, float]] | None,
) -> dict[str, Any]:
    def spread(values: Sequence[float]) -> dict[str, float]:
        return {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}

    columns = {key: spread([float(row[key]) for row in found]) for key in JUDGED}
    columns["log10_forget_quality"] = spread(
        [math.log10(max(float(row["forget_quality"] or 1e-99), 1e-99)) for row in found]
        if found[0].get("forget_quality") is not None
        else [0.0]
    )
    if oracles is not None:
        pairs = zip(found, oracles, strict=True)
        columns["distance"] = spread([distance(row, oracle) for row, oracle in pairs])
    return {"method": name, "settings": dict(choice), **columns}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for documentation, nearest to the oracle first."""
    keys = ("distance", *JUDGED, "log10_forget_quality")
    head = ["method", "settings", *(key.replace("_", " ") for key in keys)]
    lines = [head, ["---"] * len(head)]
    for row in sorted(rows, key=lambda row: row.get("distance", {"mean": -1.0})["mean"]):
        cells = [f"{row[key]['mean']:.3f}" if key in row else "" for key in keys]
        lines.append([row["method"], _settings(row), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _settings(row: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{'learning rate' if key == 'rate' else key} {value:g}"
        if isinstance(value, float)
        else f"{key} {value}"
        for key, value in row["settings"].items()
        if key not in ("combiner", "finishers") and (key, value) != ("rate", 1.0)
    )


def _printed(row: Mapping[str, Any]) -> dict[str, Any]:
    def shown(value: Any) -> str:
        if not isinstance(value, dict):
            return json.dumps(value) if isinstance(value, list) else str(value)
        return f"{value['mean']:.3f} ({value['least']:.3f}-{value['most']:.3f})"

    columns = {key: shown(row[key]) for key in row if key not in ("method", "settings")}
    return {"method": row["method"], "settings": _settings(row), "distance": "-", **columns}


if __name__ == "__main__":
    main()
