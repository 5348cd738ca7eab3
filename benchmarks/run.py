"""Measure, as ratios to limits measured in the same run.

    python benchmarks/run.py                       # every suite, quick sizes (make bench)
    python benchmarks/run.py --models small --dtypes bfloat16 --steps 40 --lanes npo "ofmu inner"

Prints a table and writes JSON with device, versions and every figure.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SUITES = ("step", "edits", "population", "continual", "looks")


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--suite", nargs="*", choices=SUITES, default=list(SUITES))
    parser.add_argument(
        "--models", nargs="*", default=["tiny"], help="tiny, small, or a path: .gguf, folder, id"
    )
    parser.add_argument("--dtypes", nargs="*", default=["float32"])
    parser.add_argument("--batch", type=int, default=32, help="examples of each role in a step")
    parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights")
    parser.add_argument(
        "--lanes",
        nargs="*",
        help="of the suites step and continual; all unless given; methods: every trained one",
    )
    parser.add_argument("--steps", type=int, default=17, help="of each lane and round")
    parser.add_argument("--rounds", type=int, default=2, help="interleaved repetitions")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "bench.json")
    options = parser.parse_args()
    from rich.console import Console

    from benchmarks import edits, looks, population, step, strategies
    from jaxforget.cli import quiet_logs
    from jaxforget.engine.files import write_json
    from jaxforget.engine.runtime import keep_freed_memory, use_compile_cache
    from jaxforget.report.tables import plain_table
    from jaxforget.studies.common import environment

    if options.lanes == ["methods"]:
        options.lanes = step.trained_methods()
    known = [*step.LANES, *strategies.LANES, *step.trained_methods()]
    if unknown := set(options.lanes or ()) - set(known):
        parser.error(f"no lanes {sorted(unknown)}; {known}")
    quiet_logs()
    keep_freed_memory()
    use_compile_cache(ROOT / "runs" / "programs")
    written: dict[str, Any] = environment()
    if "step" in options.suite:
        written["rows"] = _steps(options, step)
        found = written["rows"]
        same = {key for key in found[0] if len({row[key] for row in found}) == 1}
        print(", ".join(f"{key} {found[0][key]}" for key in found[0] if key in same))
        Console().print(plain_table([_without(row, same) for row in found]))
    if "edits" in options.suite:
        print("edits ...", file=sys.stderr, flush=True)
        written["edits"] = edits.rows(options.rounds)
        Console().print(plain_table(written["edits"]))
    if "population" in options.suite:
        print("population: sixteen settings in one program ...", file=sys.stderr, flush=True)
        written["population"] = population.measure(13, 16)
        Console().print(plain_table([written["population"]]))
    if "continual" in options.suite:
        print("continual: strategies against naive steps ...", file=sys.stderr, flush=True)
        sizes = [(model, dtype) for model in options.models for dtype in options.dtypes]
        wanted = {strategies.BASE, *(options.lanes or strategies.LANES)}
        lanes = {name: lane for name, lane in strategies.LANES.items() if name in wanted}
        written["continual"] = [
            row
            for model, dtype in sizes
            for row in strategies.rows(
                model, dtype, options.batch, max(options.rounds, 5), options.steps, lanes
            )
        ]
        Console().print(plain_table(written["continual"]))
    if "looks" in options.suite:
        print("looks: 64 probes after every update ...", file=sys.stderr, flush=True)
        written["looks"] = [
            row
            for model in options.models
            for dtype in options.dtypes
            for row in looks.rows(model, dtype, max(options.rounds, 5), options.steps)
        ]
        Console().print(plain_table(written["looks"]))
    write_json(options.out, written)
    print(json.dumps({"written": str(options.out), "devices": written["devices"]}))


def _steps(options: argparse.Namespace, step: Any) -> list[dict[str, Any]]:
    from jaxforget.config import LoraConfig, TrainConfig

    found: list[dict[str, Any]] = []
    for model in options.models:
        for dtype in options.dtypes:
            print(f"step: {model}, {dtype} ...", file=sys.stderr, flush=True)
            possible = dict.fromkeys([*step.LANES, *step.trained_methods()])
            lanes = [lane for lane in possible if lane in (options.lanes or step.LANES)]
            settings = TrainConfig(
                steps=options.steps,
                batch_size=options.batch,
                compute=dtype,
                remat=options.remat,
                log_every=4,
            )
            lora = LoraConfig(rank=options.lora) if options.lora else None
            found += step.rows(model, settings, options.rounds, lanes, lora)
    return found


def _without(row: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


if __name__ == "__main__":
    main()
