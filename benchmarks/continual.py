"""Nine kinds of real text in turn, a model from scratch, and every way to keep what was read.

    python benchmarks/continual.py --data DIR --out runs/retention

DIR holds NAME.train.txt.gz and NAME.eval.txt.gz. A killed call continues where it stopped. Leaves
one run a strategy with its page, the page of all in report.html, and in trends.json and trends.md
what published studies claim beside what was found here.

The single-domain runs begin with the same untrained model (a domain trained on alone). KappaTune
needs matrices that are worth keeping: it begins with the model of the first domain.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from jaxforget.config.stream import ScratchConfig
from jaxforget.data.sources import DataSource, load_records
from jaxforget.engine.files import write_json
from jaxforget.models import Compute
from jaxforget.report.console import live
from jaxforget.studies import Events, continual
from jaxforget.studies.starting import scratch

LARGE = ScratchConfig(vocabulary=3072, width=256, layers=3, heads=8, inner=704)  # 3.2 million
SMALL = ScratchConfig(vocabulary=3072, width=128, layers=3, heads=4, inner=352)  # 1.0 million
RUNS: Mapping[str, Mapping[str, Any]] = {
    "naive": {},
    "replay 5 %": {"memory": {"share": 0.05, "size": 2000}},
    "replay 25 %": {"memory": {"share": 0.25, "size": 2000}},
    "ewc 0.1": {"strategy": {"name": "ewc", "weight": 0.1, "examples": 128}},
    "ewc 1": {"strategy": {"name": "ewc", "weight": 1.0, "examples": 128}},
    "lwf": {"strategy": {"name": "lwf", "teacher": "live"}},
    "k-FPF": {"strategy": {"name": "k_fpf", "every": 100, "steps": 10}, "memory": {"size": 2000}},
    "joint": {"strategy": "joint"},
    "naive, random order": {"order": "random"},
    "naive, small model": {"model": "small"},
    "KappaTune": {"strategy": "kappatune", "model": "first"},
}


def main() -> None:
    """Train all runs, compare them, and check the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/retention"))
    parser.add_argument("--runs", nargs="*", default=list(RUNS), help="of those of this file")
    parser.add_argument("--steps", type=int, default=80, help="on each domain")
    parser.add_argument("--looks", type=int, default=4, help="steps between two looks")
    options = parser.parse_args()
    files = sorted(options.data.glob("*.train.txt.gz"))
    stream = [_task(file) for file in files]
    _models(stream, options.out)
    shared = _shared(options, stream)
    streams = options.out / "streams"
    runs = {name: _named(RUNS[name], options.out, stream) for name in options.runs}
    reference = "joint" if "joint" in runs else None
    compared = {"run_dir": str(streams), "runs": runs, "reference": reference}
    with live(Console(stderr=True)) as told:
        events = Events(told.stage, told.progress, told.counted)
        for task in stream:
            one = {"stream": [task], "run_dir": str(options.out / "alone" / task["name"])}
            continual(shared | one | {"order": "given"}, events)
        continual(shared | compared, events)
    found = {name: _read(streams / name) for name in runs}
    alone = {each["name"]: _read(options.out / "alone" / each["name"]) for each in stream}
    trends = claims(found, alone)
    write_json(options.out / "trends.json", trends)
    text = f"{overview(found)}\n\n{markdown(trends)}\n"
    (options.out / "trends.md").write_text(text)
    print(text)


def _task(file: pathlib.Path) -> dict[str, Any]:
    held = file.with_name(file.name.replace(".train.", ".eval."))
    return {
        "name": file.name.split(".")[0],
        "data": {"path": str(file)},
        "evaluate": {"path": str(held)},
    }


def _models(stream: Sequence[Mapping[str, Any]], out: pathlib.Path) -> None:
    """The untrained models of both sizes, with one tokenizer of all training text."""
    if (out / "small").exists():
        return
    records = [
        record for task in stream for record in load_records(DataSource(task["data"]["path"]))
    ]
    for name, size in (("large", LARGE), ("small", SMALL)):
        scratch(size, records, 0, Compute()).save_pretrained(out / name)


def _shared(options: argparse.Namespace, stream: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "stream": stream,
        "model": str(options.out / "large"),
        "order": "similar",
        "max_length": 256,
        "template": {"kind": "none", "end": False},
        "train": {
            "steps": options.steps,
            "batch_size": 8,
            "compute": "bfloat16",
            "remat": "none",
            "log_every": 50,
            "save_every": 100,
        },
        "optimizer": {"learning_rate": 2e-3, "warmup_fraction": 0.1, "weight_decay": 0.1},
        "measure": {"every": options.looks, "probe": 2, "limit": 32, "recovery": {"steps": 10}},
    }


def _named(
    changes: Mapping[str, Any], out: pathlib.Path, stream: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    models = {"small": out / "small", "first": out / "alone" / stream[0]["name"] / "model"}
    model = {"model": str(models[changes["model"]])} if "model" in changes else {}
    return {**changes, **model}


def _read(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def claims(
    found: Mapping[str, Mapping[str, Any]], alone: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What published studies claim, the numbers here, and whether they agree."""
    rows: list[dict[str, Any]] = []

    def claim(text: str, source: str, left: float, right: float, *names: str) -> None:
        rows.append(
            {
                "claim": text,
                "source": source,
                names[0]: round(left, 4),
                names[1]: round(right, 4),
                "reproduced": bool(left < right),
            }
        )

    def of(run: str, name: str) -> float:
        return found[run]["metrics"][name]

    def curve(run: str) -> tuple[float, float]:
        return of(run, "min_score"), of(run, "probe_mean_score")

    stability, yildiz = "De Lange et al. 2023", "Yildiz et al. 2024"
    for run in ("naive", "replay 5 %", "replay 25 %"):
        if run in found:
            text = f"{run}: the worst score since a task's end lies below the last"
            claim(text, stability, *curve(run), "min score", "last score")
    if "naive" in found:
        matrix = found["naive"]["matrix"]
        nll, tasks = np.asarray(matrix["nll"]), matrix["tasks"]
        own = float(np.mean([nll[i + 1, i] for i in range(1, len(tasks))]))
        single = float(np.mean([alone[name]["matrix"]["nll"][-1][0] for name in tasks[1:]]))
        text = "a domain read after others is learned better than alone"
        claim(text, yildiz, own, single, "NLL in the stream", "NLL alone")
    pairs = [
        ("a larger model forgets less", yildiz, "naive", "naive, small model", "forgetting"),
        ("a larger model ends lower", yildiz, "naive", "naive, small model", "mean_nll"),
        ("random order ends lower", yildiz, "naive, random order", "naive", "mean_nll"),
        ("random order forgets less", yildiz, "naive, random order", "naive", "forgetting"),
        ("similar order learns the current domain better", yildiz)
        + ("naive", "naive, random order", "learned_nll"),
        ("5 % replay forgets less", "Ibrahim et al. 2024", "replay 5 %", "naive", "forgetting"),
        ("25 % replay less than 5 %", "Ibrahim et al. 2024")
        + ("replay 25 %", "replay 5 %", "forgetting"),
        ("EWC forgets less", "Kirkpatrick et al. 2017", "ewc 1", "naive", "forgetting"),
        ("LwF forgets less", "Li & Hoiem 2016", "lwf", "naive", "forgetting"),
        ("k-FPF forgets less", "Zhao et al. 2023", "k-FPF", "naive", "forgetting"),
        ("KappaTune forgets less", "Ludwig 2025", "KappaTune", "naive", "forgetting"),
    ]
    for text, source, left, right, name in pairs:
        if left in found and right in found:
            claim(text, source, of(left, name), of(right, name), left, right)
    return rows


def overview(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a run."""
    names = (
        "mean_nll",
        "learned_nll",
        "backward_transfer",
        "forgetting",
        "backward_transfer_after_recovery",
        "min_score",
        "probe_mean_score",
        "windowed_forgetting_10",
    )
    lines = ["| | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for run, results in found.items():
        values = [results["metrics"].get(name) for name in names]
        cells = ["–" if value is None else f"{value:.3f}" for value in values]
        lines.append("| " + " | ".join([run, *cells]) + " |")
    return "\n".join(lines)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a claim: the first number should be below the second."""
    lines = ["| claim | source | found | reproduced |", "|---|---|---|---|"]
    for row in rows:
        numbers = [
            f"{key} {value:.3f}"
            for key, value in row.items()
            if key not in ("claim", "source", "reproduced")
        ]
        told = "yes" if row["reproduced"] else "no"
        lines.append(f"| {row['claim']} | {row['source']} | {', '.join(numbers)} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
