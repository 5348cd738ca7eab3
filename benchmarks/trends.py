"""Claims of papers that need a comparison of their own, on the fictitious people.

    python benchmarks/methods.py --methods graddiff    # first: the models of every seed
    python benchmarks/trends.py

Each lane trains one setting of a method, all of the same number of steps, on every seed; triggered
copies of the forget set are scored where a claim is about triggers. Writes trends.json and prints a
table a claim: means over the seeds, least and most in brackets.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jaxforget.data.triggers import PUBLISHED, insert_trigger  # noqa: E402
from jaxforget.engine.errors import UserError  # noqa: E402
from jaxforget.engine.files import write_json  # noqa: E402
from jaxforget.report import load_run  # noqa: E402
from jaxforget.studies import evaluate  # noqa: E402
from jaxforget.studies.quickstart import judging  # noqa: E402
from jaxforget.studies.unlearn import unlearn  # noqa: E402

type Row = Mapping[str, float | None]

LWF = {"name": "lwf", "every": 5}
PO = {"name": "prompt_decouple", "base": "po"}
OFMU = {"name": "ofmu", "inner_steps": 3}
CLAIMS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "LWF: own answers that conflict most with learning are the ones to forget": {
        "learning alone": {"method": {"name": "retain_finetune"}, "rate": 6e-4},
        **{
            f"{which} conflict": {"method": {**LWF, "select": which}, "rate": 6e-4}
            for which in ("highest", "random", "lowest")
        },
    },
    "MELU: one retain example drawn at random for each to forget is poor": {
        pairing: {
            "method": {"name": "npo", "beta": 0.3},
            "rate": 6e-4,
            "train": {"pairing": pairing},
        }
        for pairing in ("cyclic", "one_to_one", "sequential")
    },
    "OFMU: without decorrelation retention collapses": {
        f"beta {beta:g}": {"method": {**OFMU, "beta": beta}, "rate": 6e-4}
        for beta in (0.0, 0.1, 1.0)
    },
    "SafeEraser: prompt decoupling keeps harmless prompts from being refused": {
        f"decouple weight {weight:g}": {"method": {**PO, "decouple_weight": weight}, "rate": 2e-3}
        for weight in (0.0, 1.0)
    },
    "Attention-sink backdoor: a prefix brings the knowledge back, other places do not": {
        "backdoor": {"method": {"name": "backdoor", "poison_share": 0.25}, "rate": 2e-3},
        "npo": {"method": {"name": "npo", "beta": 0.1}, "rate": 2e-3},
    },
}
COLUMNS = (
    "forget_prob",
    "retain_prob",
    "model_utility",
    "forget_refusal_rate",
    "wf_refusal_rate",
    "triggered_start",
    "triggered_middle",
    "triggered_end",
)


def main() -> None:
    """Parse, train, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "trends")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--claims", nargs="*", default=[], help="first words; all unless given")
    options = parser.parse_args()
    from jaxforget.cli import quiet_logs

    quiet_logs()
    found: dict[str, dict[str, list[Row]]] = {}
    for claim, lanes in CLAIMS.items():
        if options.claims and claim.split(":")[0] not in options.claims:
            continue
        for name, lane in lanes.items():
            print(claim.split(":")[0], name, file=sys.stderr, flush=True)
            rows = [_once(options, claim, name, lane, seed) for seed in options.seeds]
            found.setdefault(claim, {})[name] = rows
            write_json(options.out / "trends.json", {"seeds": options.seeds, "claims": found})
    print("\n\n".join(f"{claim}\n\n{markdown(lanes)}" for claim, lanes in found.items()))


def _once(
    options: argparse.Namespace, claim: str, name: str, lane: Mapping[str, Any], seed: int
) -> Row:
    world = options.runs / str(seed)
    if not (world / "finetuned" / "results.json").exists():
        raise UserError(f"{world}: benchmarks/methods.py has not made the models of this seed")
    place = options.out / str(seed) / f"{claim.split(':')[0]} {name}".replace(" ", "-").lower()
    unlearn(
        {
            "model": str(world / "finetuned"),
            "forget": str(world / "data" / "forget.jsonl"),
            "retain": str(world / "data" / "retain.jsonl"),
            "general": str(world / "data" / "world_facts.jsonl"),
            "method": dict(lane["method"]),
            "run_dir": str(place),
            "max_length": 128,
            "train": {
                "steps": options.steps,
                "batch_size": 32,
                "seed": seed,
                "keep": 1,
                **lane.get("train", {}),
            },
            "optimizer": {"learning_rate": lane["rate"], "warmup_fraction": 0.1},
            "evaluate": judging(world, oracle=True),
        }
    )
    row = dict(load_run(place, name).metrics)
    if "backdoor" in claim:
        row |= {
            f"triggered_{at}": _triggered(world, place, at) for at in ("start", "middle", "end")
        }
    return {key: row[key] for key in COLUMNS if key in row}


def _triggered(world: pathlib.Path, run: pathlib.Path, at: Any) -> float:
    """Forget probability where every question holds the trigger."""
    file = world / "data" / f"triggered_{at}.jsonl"
    lines = (world / "data" / "forget.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    shown = [{**row, "question": insert_trigger(row["question"], PUBLISHED, at)} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in shown))
    result = evaluate(
        {
            "model": str(run),
            "run_dir": str(run / f"triggered_{at}"),
            "max_length": 128,
            "evaluate": {
                "forget": str(file),
                "retain": str(world / "data" / "retain.jsonl"),
                "generate": False,
                "utility_over": "available",
            },
        }
    )
    return float(result.metrics["forget_prob"] or 0.0)


def markdown(lanes: Mapping[str, Sequence[Row]]) -> str:
    """One row a lane."""
    columns = [key for key in COLUMNS if any(key in row for rows in lanes.values() for row in rows)]
    lines = [["", *(key.replace("_", " ") for key in columns)], ["---"] * (1 + len(columns))]
    lines += [[name, *(_cell(rows, key) for key in columns)] for name, rows in lanes.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(rows: Sequence[Row], key: str) -> str:
    values = [value for row in rows if (value := row.get(key)) is not None]
    if not values:
        return ""
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
