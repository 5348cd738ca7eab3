"""TOFU's forget01 on a real model, from teaching to the table, unattended and resumable.

    python benchmarks/tofu.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data DIR --out runs/tofu

DIR holds TOFU's files (forget01.json, retain99.json, *_perturbed.json). The model is taught the
authors to forget and some of the others; an oracle is taught the others alone; then the methods
that are named unlearn with their files of configs/tofu. A killed call continues where it stopped.
Leaves summary.json, summary.md and report.html in the output folder.

`step` is the time of a step over GradDiff's, both the first decile of all logged steps, which a
busy machine disturbs least (edits take none); `step MiB` is what the compiled step holds at once.
"""

import argparse
import json
import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.config import FinetuneConfig, UnlearnConfig
from jaxforget.engine.files import write_json
from jaxforget.report import RunSummary, load_run, terminal_table, write_report
from jaxforget.report.console import live
from jaxforget.studies import finetune, unlearn

CONFIGS = pathlib.Path(__file__).parent.parent / "configs" / "tofu"
SUITE = ("forget", "retain", "real_authors", "world_facts")
FILES = {"forget": "forget01_perturbed", "retain": "retain_perturbed"}
JUDGED = ("forget_prob", "retain_prob", "forget_rouge", "forget_quality", "model_utility")


def local(data: pathlib.Path, out: pathlib.Path, *, oracle: bool) -> list[str]:
    """Overrides that read the suite's sets from files."""
    given = []
    for name in SUITE:
        file = data / f"{FILES.get(name, name + '_perturbed')}.json"
        given.append(f"evaluate.{name}={json.dumps({'path': str(file)})}")
    return [*given, f"evaluate.oracle={out / 'oracle' if oracle else 'null'}"]


def read_by(name: str) -> list[str]:
    """The sets of the benchmark that a method's configuration names."""
    roles = methods.get(name).roles
    return [role for role in ("forget", "retain", "general") if role in ("forget", *roles)]


def pace(run: RunSummary) -> float | None:
    """Milliseconds of a step where nothing disturbed it."""
    times = [row["step_ms"] for row in run.curves if "step_ms" in row]
    return float(np.quantile(times, 0.1)) if times else None


def markdown(runs: Sequence[RunSummary]) -> str:
    """The table for documentation: what is judged, and what a step costs."""
    head = ["", *(key.replace("_", " ") for key in JUDGED), "step", "step MiB"]
    lines = [head, ["---"] * len(head)]
    unit = next((pace(run) for run in runs if run.name == "graddiff"), None)
    for run in runs:
        cost, mine = run.environment["throughput"], pace(run)
        ratio = f"{mine / unit:.2f}" if unit and mine else ""
        memory = f"{cost['step_bytes'] / 2**20:.0f}" if cost.get("step_bytes") else ""
        cells = ["" if run.metrics[key] is None else f"{run.metrics[key]:.2g}" for key in JUDGED]
        lines.append([run.name, *cells, ratio, memory])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Parse, run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder, hub id or .gguf")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="TOFU's files")
    parser.add_argument("--out", default="runs/tofu", type=pathlib.Path)
    parser.add_argument("--retain", default=300, type=int, help="rows of the retain set")
    parser.add_argument(
        "--methods", nargs="*", default=["graddiff", "npo"], help="names, or all of them: all"
    )
    parser.add_argument("--teach", nargs="*", default=[], help="overrides of the two taught models")
    parser.add_argument("--forget", nargs="*", default=[], help="overrides of the methods' runs")
    parser.add_argument("overrides", nargs="*", help="for every run, e.g. evaluate.limit=20")
    options = parser.parse_args()
    from rich.console import Console

    from jaxforget.cli import quiet_logs

    quiet_logs()
    for handler in logging.getLogger().handlers:  # those that an import has put there before
        handler.setLevel(logging.WARNING)
    console, out, data = Console(), options.out, options.data
    chosen = methods.names() if options.methods == ["all"] else options.methods
    general = {"path": str(data / "world_facts.json")}
    updates = out / "finetuned" / "updates"
    forget = {"path": str(data / "forget01.json")}
    retain = {"path": str(data / "retain99.json"), "rows": f"0:{options.retain}"}
    with live(console) as events:
        for name, rows in (("oracle", [retain]), ("finetuned", [forget, retain])):
            overrides = [
                f"model={options.model}",
                f"data={json.dumps(rows)}",
                f"run_dir={out / name}",
                *([f"record_updates={json.dumps(forget)}"] if name == "finetuned" else []),
                *local(data, out, oracle=name != "oracle"),
                *options.overrides,
                *options.teach,
            ]
            finetune(configs.load(FinetuneConfig, CONFIGS / "finetune.yaml", overrides), events)
        for name in chosen:
            sources = {"forget": forget, "retain": retain, "general": general}
            overrides = [
                f"model={out / 'finetuned'}",
                f"run_dir={out / name}",
                *(f"{role}={json.dumps(sources[role])}" for role in read_by(name)),
                *([f"method.updates={updates}"] if name == "amnesiac" else []),
                *local(data, out, oracle=True),
                *options.overrides,
                *options.forget,
            ]
            unlearn(configs.load(UnlearnConfig, CONFIGS / f"{name}.yaml", overrides), events)
    runs = [load_run(out / name, name) for name in ("finetuned", "oracle", *chosen)]
    rows = [run.row() for run in runs]
    write_json(out / "summary.json", {"model": options.model, "rows": rows})
    (out / "summary.md").write_text(markdown(runs) + "\n")
    write_report(
        runs, out / "report.html", title=f"TOFU forget01, {pathlib.Path(options.model).name}"
    )
    console.print(terminal_table(rows))


if __name__ == "__main__":
    main()
