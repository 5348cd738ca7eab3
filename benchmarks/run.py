"""Measure, as ratios to limits measured in the same run.

    python benchmarks/run.py                       # quick sizes of what needs no other program
    python benchmarks/run.py --models small --dtypes bfloat16 --steps 40 --lanes npo "ofmu inner"
    python benchmarks/run.py --suite throughput eval --data TOFU_FILES --peer-python PYTHON

Prints tables and writes JSON with device, versions, commit and every figure, and a plot a suite.
The suites `throughput` and `eval` run beside open-unlearning's way in PyTorch, in an environment
that has torch and transformers; their scripts have further options.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

type Rows = list[dict[str, Any]]


def _step(options: argparse.Namespace) -> Rows:
    from benchmarks import step
    from jaxforget.config import LoraConfig, TrainConfig

    settings = {"steps": options.steps, "batch_size": options.batch, "remat": options.remat}
    lora = LoraConfig(rank=options.lora) if options.lora else None
    possible = dict.fromkeys([*step.LANES, *step.trained_methods()])
    lanes = [lane for lane in possible if lane in (options.lanes or step.LANES)]
    found: Rows = []
    for model in options.models:
        for dtype in options.dtypes:
            train = TrainConfig(**settings, compute=dtype, log_every=4)
            found += step.rows(model, train, options.rounds, lanes, lora)
    return found


def _edits(options: argparse.Namespace) -> Rows:
    from benchmarks import edits

    return edits.rows(options.rounds)


def _population(options: argparse.Namespace) -> Rows:
    from benchmarks import population

    return [population.measure(13, 16)]


def _continual(options: argparse.Namespace) -> Rows:
    from benchmarks import strategies

    wanted = {strategies.BASE, *(options.lanes or strategies.LANES)}
    lanes = {name: lane for name, lane in strategies.LANES.items() if name in wanted}
    sizes = [(model, dtype) for model in options.models for dtype in options.dtypes]
    rounds, steps = max(options.rounds, 5), options.steps
    return [
        row
        for model, dtype in sizes
        for row in strategies.rows(model, dtype, options.batch, rounds, steps, lanes)
    ]


def _looks(options: argparse.Namespace) -> Rows:
    from benchmarks import looks

    sizes = [(model, dtype) for model in options.models for dtype in options.dtypes]
    rounds = max(options.rounds, 5)
    return [row for size in sizes for row in looks.rows(*size, rounds, options.steps)]


def _kernels(options: argparse.Namespace) -> Rows:
    from benchmarks import kernels

    return [row for dtype in options.dtypes for row in kernels.rows(dtype)]


def _memory(options: argparse.Namespace) -> Rows:
    from benchmarks import memory

    return memory.rows(options.batch)


def _scaling(options: argparse.Namespace) -> Rows:
    from benchmarks import scaling

    return scaling.rows()


def _planned(options: argparse.Namespace) -> Rows:
    from benchmarks import scaling

    return scaling.planned()


def _startup(options: argparse.Namespace) -> Rows:
    from benchmarks import startup

    return startup.rows(options.rounds)


def _throughput(options: argparse.Namespace) -> Rows:
    return _beside_the_peer(options, "throughput")["table"]


def _eval(options: argparse.Namespace) -> Rows:
    return _beside_the_peer(options, "evaluation")["table"]


def _beside_the_peer(options: argparse.Namespace, script: str) -> dict[str, Any]:
    folder = options.out.parent / script
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--out", str(folder)]
    command += ["--data", options.data, "--peer-python", options.peer_python]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / f"{script}.json").read_text())


QUICK: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "step": _step,
    "edits": _edits,
    "population": _population,
    "continual": _continual,
    "looks": _looks,
    "kernels": _kernels,
    "memory": _memory,
    "scaling": _scaling,
    "planned": _planned,
    "startup": _startup,
}
PEER = {"throughput": _throughput, "eval": _eval}
DRAWN = {
    "step": ("lane", "step_over_graddiff"),
    "edits": ("edit", "over_epoch"),
    "continual": ("lane", "step_over_naive"),
    "looks": ("lane", "step_over_naive"),
    "kernels": ("kernel", "of_peak"),
    "memory": ("settings", "ratio"),
    "startup": ("what", "over_import_jax"),
    "throughput": ("method", "tokens/s over the peer's"),
}
"""What is drawn of a suite: the names of its bars, and their lengths."""


def main() -> None:
    """Parse, measure, print, write."""
    options = _options()
    from rich.console import Console

    from jaxforget.cli import quiet_logs
    from jaxforget.engine.files import write_json
    from jaxforget.engine.runtime import keep_freed_memory, use_compile_cache
    from jaxforget.report.tables import plain_table
    from jaxforget.studies.common import environment

    quiet_logs()
    keep_freed_memory()
    use_compile_cache(ROOT / "runs" / "programs")
    written: dict[str, Any] = {**environment(), "commit": _commit()}
    for name in options.suite:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = {**QUICK, **PEER}[name](options)
        written[name] = rows
        same = {key for key in rows[0] if len(rows) > 1 and len({str(r[key]) for r in rows}) == 1}
        print(", ".join([name, *(f"{key} {rows[0][key]}" for key in rows[0] if key in same)]))
        Console().print(plain_table([_without(row, same) for row in rows]))
        if name in DRAWN:
            draw(rows, *DRAWN[name], options.out.with_name(f"{options.out.stem}-{name}.svg"))
        write_json(options.out, written)  # what is measured is not lost with what is not
    print(json.dumps({"written": str(options.out), "devices": written["devices"]}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--suite", nargs="*", choices=[*QUICK, *PEER], default=list(QUICK))
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
    parser.add_argument("--data", help="folder of TOFU's files, for the suites beside the peer")
    parser.add_argument("--peer-python", help="interpreter with torch and transformers, for them")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "bench.json")
    options = parser.parse_args()
    if set(options.suite) & set(PEER) and not (options.data and options.peer_python):
        parser.error(f"the suites {', '.join(PEER)} need --data and --peer-python")
    if options.lanes:
        from benchmarks import step, strategies

        if options.lanes == ["methods"]:
            options.lanes = step.trained_methods()
        known = [*step.LANES, *strategies.LANES, *step.trained_methods()]
        if unknown := set(options.lanes) - set(known):
            parser.error(f"no lanes {sorted(unknown)}; {known}")
    return options


def _commit() -> str | None:
    """Of this checkout; None where it is none."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def draw(rows: Rows, name: str, value: str, file: pathlib.Path) -> None:
    """One bar a row."""
    from jaxforget.engine.files import write_atomically
    from jaxforget.report.plots import COLOURS, new_figure, svg_of

    figure, axes = new_figure(7.0, 0.8 + 0.3 * len(rows))
    names = [f"{row[name]}  {row[value]}" for row in rows][::-1]
    axes.barh(range(len(rows)), [row[value] for row in rows][::-1], color=COLOURS[0], height=0.6)
    axes.set_yticks(range(len(rows)), names)
    axes.axvline(1.0, color=COLOURS[-2], linewidth=0.8, linestyle=":")
    axes.set_xlabel(value.replace("_", " "))
    write_atomically(file, svg_of(figure, file.stem))


def _without(row: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


if __name__ == "__main__":
    main()
