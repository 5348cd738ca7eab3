"""An audit of two methods on a real model, from teaching to the report, unattended and resumable.

    python benchmarks/audit_tofu.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data DIR

DIR holds TOFU's files. A model is taught rows about the first author of forget01 and some others,
an oracle the others alone, by LoRA; NPO and GradDiff make the former forget the author; then
`jaxforget audit` attacks both beside the model before and the oracle. All is sized for an hour on
one core: what is to be seen is that the whole report comes about, not fine differences. A killed
call continues where it stopped, and `--only` does one stage. Prints the table.
"""

import argparse
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from jaxforget import config as configs
from jaxforget.config import FinetuneConfig, UnlearnConfig
from jaxforget.report.console import live
from jaxforget.studies import audit, finetune, unlearn

CONFIGS = pathlib.Path(__file__).parent.parent / "configs" / "tofu"
METHODS = ("npo", "graddiff")
STAGES = ("oracle", "finetuned", *(f"{kind}{name}" for name in METHODS for kind in ("", "audit-")))
EPOCHS = {"oracle": 10, "finetuned": 10, "npo": 10, "graddiff": 5}
RELEARN = {"name": "relearn", "steps": 10, "learning_rates": [1e-3]}
ATTACKS: Sequence[Mapping[str, Any]] = (
    {"name": "ask"},
    {"name": "prompts", "kind": "prefix"},
    {"name": "prompts", "kind": "paraphrase"},
    {"name": "in_context", "shots": 3},
    {"name": "sampling", "samples": 4},
    {"name": "logit_lens"},
    {"name": "probe"},
    {"name": "steering", "depths": [0.5], "strengths": [1.0, 2.0]},
    {"name": "membership"},
    {"name": "remind", "variants": 8},
    {"name": "trigger", "steps": 4, "candidates": 16},
    {**RELEARN, "text": "forget"},
    {**RELEARN, "text": "forget", "rank": 0, "learning_rates": [1e-4]},
    {**RELEARN, "text": "half"},
    {**RELEARN, "text": "retain"},
    {**RELEARN, "text": "unrelated"},
    {"name": "quantise", "bits": 8},
    {"name": "quantise", "bits": 4},
)


def sources(data: pathlib.Path, forget: int, retain: int) -> dict[str, dict[str, str]]:
    """What is read of TOFU's files, by name."""
    files = {
        "forget": ("forget01", f"0:{forget}"),
        "retain": ("retain99", f"0:{retain}"),
        "judged_forget": ("forget01_perturbed", f"0:{forget}"),
        "judged_retain": ("retain_perturbed", f"0:{min(retain, 20)}"),
        "holdout": ("holdout10", "0:20"),
        "unrelated": ("world_facts", "0:40"),
    }
    return {
        name: {"path": str(data / f"{file}.json"), "rows": rows}
        for name, (file, rows) in files.items()
    }


def judged(read: Mapping[str, Any], oracle: pathlib.Path | None) -> list[str]:
    """Overrides of the evaluation of every run."""
    suite = {
        "forget": read["judged_forget"],
        "retain": read["judged_retain"],
        "real_authors": None,
        "world_facts": None,
        "limit": 20,
        "max_new_tokens": 48,
        "utility_over": "available",
        "oracle": None if oracle is None else str(oracle),
    }
    return [f"evaluate.{name}={json.dumps(value)}" for name, value in suite.items()]


def sized(options: Any, name: str) -> list[str]:
    """Overrides of a training's size and precision, and those given."""
    epochs, batch = f"train.epochs={EPOCHS[name]}", f"train.batch_size={options.batch}"
    return [epochs, batch, f"train.compute={options.compute}", *options.overrides]


def teach(options: Any, read: Mapping[str, Any], name: str, events: Any) -> None:
    """The model that knows the author, or the oracle."""
    rows = [read["retain"]] if name == "oracle" else [read["forget"], read["retain"]]
    overrides = [
        f"model={options.model}",
        f"data={json.dumps(rows)}",
        f"run_dir={options.out / name}",
        *judged(read, None if name == "oracle" else options.out / "oracle"),
        *sized(options, name),
    ]
    finetune(configs.load(FinetuneConfig, CONFIGS / "finetune.yaml", overrides), events)


def forget(options: Any, read: Mapping[str, Any], name: str, events: Any) -> None:
    """One method's run."""
    overrides = [
        f"model={options.out / 'finetuned'}",
        f"run_dir={options.out / name}",
        *(f"{role}={json.dumps(read[role])}" for role in ("forget", "retain")),
        *judged(read, options.out / "oracle"),
        *sized(options, name),
    ]
    unlearn(configs.load(UnlearnConfig, CONFIGS / f"{name}.yaml", overrides), events)


def attack(options: Any, read: Mapping[str, Any], name: str, events: Any) -> None:
    """One method's audit."""
    run = options.out / name
    for other in METHODS:  # what was found of the start and the oracle holds for every method
        for model in ("start", "oracle"):
            known = options.out / other / "audit" / "findings" / model
            mine = run / "audit" / "findings" / model
            if other != name and known.is_dir():
                shutil.copytree(known, mine, dirs_exist_ok=True)
    audit(
        {
            "run": str(run),
            "attacks": list(ATTACKS),
            "holdout": read["holdout"],
            "unrelated": read["unrelated"],
            "limit": options.limit,
            "batch_size": 8,
            "max_new_tokens": 48,
            "compute": options.compute,
        },
        events,
    )


def markdown(out: pathlib.Path) -> str:
    """A row an attack, what is left under it of each method's knowledge, with its interval."""
    found = {}
    for name in METHODS:
        results = json.loads((out / name / "audit" / "results.json").read_text())
        found[name] = {each["label"]: each for each in results["attacks"]}
    lines = [
        ["attack", "before", "oracle", *(f"{name}{more}" for name in METHODS for more in _COLUMNS)]
    ]
    lines.append(["---"] * len(lines[0]))
    for label, first in found[METHODS[0]].items():
        row = [label, *(_number(first["known"].get(model)) for model in ("start", "oracle"))]
        for name in METHODS:
            each = found[name][label]
            low, high = _number(each["low"]), _number(each["high"])
            row += [_number(each["known"]["audited"]), f"{_number(each['left'])} ({low} to {high})"]
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_COLUMNS = ("", ", left")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    """Parse, run the stages, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, help="folder, hub id or .gguf")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="TOFU's files")
    parser.add_argument("--out", default="runs/audit_tofu", type=pathlib.Path)
    parser.add_argument("--forget", default=20, type=int, help="rows of the author, at most 20")
    parser.add_argument("--retain", default=40, type=int, help="rows of the retain set")
    parser.add_argument("--batch", default=8, type=int, help="examples of a role in a step")
    parser.add_argument("--limit", default=10, type=int, help="records of each set in the audits")
    parser.add_argument(
        "--compute",
        default="bfloat16",
        choices=("float32", "bfloat16"),
        help="of the matrix products; float32 where a CPU has no bfloat16 of its own",
    )
    parser.add_argument("--only", choices=STAGES, help="one stage instead of all")
    parser.add_argument("overrides", nargs="*", help="of the four trainings")
    options = parser.parse_args()
    from rich.console import Console

    from jaxforget.cli import quiet_logs

    quiet_logs()
    for handler in logging.getLogger().handlers:  # those that an import has put there before
        handler.setLevel(logging.WARNING)
    read = sources(options.data, options.forget, options.retain)
    with live(Console()) as events:
        for stage in [options.only] if options.only else STAGES:
            if stage in ("oracle", "finetuned"):
                teach(options, read, stage, events)
            elif stage in METHODS:
                forget(options, read, stage, events)
            else:
                attack(options, read, stage.removeprefix("audit-"), events)
    if not options.only:
        table = markdown(options.out)
        (options.out / "audit.md").write_text(table + "\n")
        print(table)


if __name__ == "__main__":
    main()
