"""TOFU's forget01 on a real model, from teaching to the table, unattended and resumable.

    python benchmarks/tofu.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data DIR --out runs/tofu

DIR holds TOFU's files (forget01.json, retain99.json, *_perturbed.json). The model is taught the
authors to forget and some of the others; an oracle is taught the others alone; then every method
of configs/tofu unlearns. A killed call continues where it stopped. Leaves summary.json and
report.html in the output folder.
"""

import argparse
import json
import logging
import pathlib

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.config import FinetuneConfig, UnlearnConfig
from jaxforget.engine.files import write_json
from jaxforget.report import load_run, terminal_table, write_report
from jaxforget.report.console import live
from jaxforget.studies import finetune, unlearn

CONFIGS = pathlib.Path(__file__).parent.parent / "configs" / "tofu"
SUITE = ("forget", "retain", "real_authors", "world_facts")
FILES = {"forget": "forget01_perturbed", "retain": "retain_perturbed"}


def local(data: pathlib.Path, out: pathlib.Path, *, oracle: bool) -> list[str]:
    """Overrides that read the suite's sets from files."""
    given = []
    for name in SUITE:
        file = data / f"{FILES.get(name, name + '_perturbed')}.json"
        given.append(f"evaluate.{name}={json.dumps({'path': str(file)})}")
    return [*given, f"evaluate.oracle={out / 'oracle' if oracle else 'null'}"]


def main() -> None:
    """Parse, run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder, hub id or .gguf")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="TOFU's files")
    parser.add_argument("--out", default="runs/tofu", type=pathlib.Path)
    parser.add_argument("--retain", default=300, type=int, help="rows of the retain set")
    parser.add_argument("--methods", nargs="*", default=["graddiff", "npo"])
    parser.add_argument("overrides", nargs="*", help="for every run, e.g. evaluate.limit=20")
    options = parser.parse_args()
    from rich.console import Console

    from jaxforget.cli import quiet_logs

    quiet_logs()
    for handler in logging.getLogger().handlers:  # those that an import has put there before
        handler.setLevel(logging.WARNING)
    console, out, data = Console(), options.out, options.data
    forget = {"path": str(data / "forget01.json")}
    retain = {"path": str(data / "retain99.json"), "rows": f"0:{options.retain}"}
    with live(console) as events:
        for name, rows in (("oracle", [retain]), ("finetuned", [forget, retain])):
            overrides = [
                f"model={options.model}",
                f"data={json.dumps(rows)}",
                f"run_dir={out / name}",
                *local(data, out, oracle=name != "oracle"),
                *options.overrides,
            ]
            finetune(configs.load(FinetuneConfig, CONFIGS / "finetune.yaml", overrides), events)
        for name in options.methods:
            overrides = [
                f"model={out / 'finetuned'}",
                f"forget={json.dumps(forget)}",
                f"run_dir={out / name}",
                *([f"retain={json.dumps(retain)}"] if "retain" in methods.get(name).roles else []),
                *local(data, out, oracle=True),
                *options.overrides,
            ]
            unlearn(configs.load(UnlearnConfig, CONFIGS / f"{name}.yaml", overrides), events)
    runs = [load_run(out / name, name) for name in ("finetuned", "oracle", *options.methods)]
    rows = [run.row() for run in runs]
    write_json(out / "summary.json", {"model": options.model, "rows": rows})
    write_report(
        runs, out / "report.html", title=f"TOFU forget01, {pathlib.Path(options.model).name}"
    )
    console.print(terminal_table(rows))


if __name__ == "__main__":
    main()
