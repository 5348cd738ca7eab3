"""Kill a run at random moments, resume it, and compare the end with an undisturbed run, bit by bit.

    python benchmarks/kill_and_resume.py --kills 20 --steps 60 [--study continual]

A tiny model unlearns, or reads three tasks with replay and EWC, by the command line in a child
process, which is sent SIGKILL and started again until it ends. The moments are random times of the
whole run in turn with random moments of one stage (compiling, stepping, saving, a task's boundary,
exporting), found by watching the run directory. Every disturbed run must leave the very weights and
metrics of the undisturbed one.

Runs on a stream share their compiled programs, so that kills fall where work is done; runs that
unlearn compile their own, and are killed while they do, too.
"""

import argparse
import collections
import hashlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

CLOCKS = ("time", "tokens_per_second", "step_ms")
SAVE_EVERY = 5
TEACH = {"train.steps": 40, "optimizer.learning_rate": 3e-3, "initialise": "random"}


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Attributes:
      name: of the stage that is aimed at.
      reached: of a run directory: has the stage begun?
      delay: longest random wait after that, seconds.
    """

    name: str
    reached: Callable[[pathlib.Path], bool]
    delay: float


def checkpoints(run: pathlib.Path) -> list[str]:
    """Names in the folder of checkpoints; a save in flight has a longer one than its step."""
    folder = run / "checkpoints"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def metrics(run: pathlib.Path) -> list[dict[str, Any]]:
    """Logged rows without what a clock decides; a torn last line is left out."""
    from jaxforget.engine.run_dir import read_metrics

    rows = read_metrics(run / "metrics.jsonl")
    return [{key: row[key] for key in row if key not in CLOCKS} for row in rows]


def moments(draw: random.Random, steps: int, length: float) -> Mapping[str, Moment]:
    """One random moment of every stage of a run of `steps` steps that lasts `length` seconds."""
    step = draw.randint(1, steps - 1)
    saved, task = SAVE_EVERY * draw.randint(1, steps // SAVE_EVERY), draw.randint(0, 1)

    def saving(run: pathlib.Path) -> bool:
        return any(name.startswith(f"{saved}.") for name in checkpoints(run))

    def boundary(run: pathlib.Path) -> bool:
        return (run / "tasks" / str(task) / "row.json").exists()

    made = (
        Moment("any", lambda run: True, length),
        Moment("compile", lambda run: (run / "metrics.jsonl").exists(), 1.0),
        Moment("step", lambda run: len(metrics(run)) >= step, 0.01),
        Moment("save", saving, 0.02),
        Moment("boundary", boundary, 0.6),
        Moment("export", lambda run: (run / ".model.part").exists(), 0.02),
    )
    return {moment.name: moment for moment in made}


UNLEARN = ("any", "compile", "step", "save", "any", "save", "step", "export")
CONTINUAL = ("any", "boundary", "step", "save", "any", "boundary", "save", "export")
TASKS = ("forget", "retain", "world_facts")


def left(run: pathlib.Path, steps: int) -> str:
    """The stage a killed run of so many steps was in, judged by what it left."""
    if (run / "results.json").exists():
        return "report"
    if (run / "model").exists():
        return "results"
    if (run / ".model.part").exists():
        return "export"
    if any(not name.isdigit() for name in checkpoints(run)):
        return "save"
    if done := len(metrics(run)):
        ended = len(list((run / "tasks").glob("*/row.json")))
        if ended and done == ended * (steps // len(TASKS)):
            return "boundary"
        return f"step, {ended} tasks ended" if (run / "tasks").exists() else "step"
    if (run / "metrics.jsonl").exists():
        return "first step"
    if (run / "tasks").exists():
        return "start of the stream"
    if any((run / "cache").glob("reference-*")):
        return "set-up"
    return "start"


def command(name: str, settings: Mapping[str, Any]) -> list[str]:
    """Command line of a study, without a configuration file of its own."""
    pairs = [f"{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "jaxforget.cli", name, os.devnull, *pairs, "--json"]


def start(arguments: list[str], programs: pathlib.Path | None = None) -> subprocess.Popen[bytes]:
    """The child, in its own process group so that a kill reaches all of it.

    Without a folder of `programs` it compiles its own.
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if programs is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(programs)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={"JAX_PLATFORMS": "cpu", **environment},
    )


def finish(arguments: list[str], programs: pathlib.Path | None = None) -> None:
    """Run to the end, or stop with the child's message."""
    child = start(arguments, programs)
    _, error = child.communicate(timeout=3600)
    if child.returncode != 0:
        raise SystemExit(f"a run failed with {child.returncode}: {error.decode()[-2000:]}")


def kill(child: subprocess.Popen[bytes], run: pathlib.Path, moment: Moment, delay: float) -> bool:
    """Kill a run at a moment; False where it ended before."""
    while not moment.reached(run) and child.poll() is None:
        time.sleep(0.0005)
    time.sleep(delay)
    alive = child.poll() is None
    if alive:
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    return alive


def outcome(run: pathlib.Path) -> tuple[Any, ...]:
    """SHA-256 of the exported weights, the logged rows, and what was measured of a stream."""
    weights = (run / "model" / "model.safetensors").read_bytes()
    results = json.loads((run / "results.json").read_text())
    measured = [results.get(name) for name in ("matrix", "looks", "ends")]
    return hashlib.sha256(weights).hexdigest(), metrics(run), measured


def prepare(root: pathlib.Path, study: str, steps: int) -> dict[str, Any]:
    """A world and a model that knows it; settings of a run without its directory."""
    from jaxforget.data.fictitious import write

    data = root / "data"
    write(data, 0)
    shared = {"max_length": 128, "train.batch_size": 8}
    teach = {"model": data, "data": data / "train_full.jsonl", "run_dir": root / "base", **TEACH}
    finish(command("finetune", {**shared, **teach}))
    sets = {"forget": data / "forget.jsonl", "retain": data / "retain.jsonl"}
    often = {"train.save_every": SAVE_EVERY, "train.log_every": 1}
    shared |= {**often, "model": root / "base", "optimizer.learning_rate": 1e-4}
    if study == "unlearn":
        return {**shared, **sets, "train.steps": steps}
    files = [{"path": str(data / f"{name}.jsonl")} for name in TASKS]
    stream = [
        {"name": name, "data": file, "evaluate": file}
        for name, file in zip(TASKS, files, strict=True)
    ]
    strategy = [{"name": "ewc", "weight": 1.0, "examples": 16}, "replay"]
    return {
        **shared,
        "stream": json.dumps(stream),
        "strategy": json.dumps(strategy),
        "memory": json.dumps({"size": 60}),
        "measure": json.dumps({"limit": 16, "every": 4, "probe": 4}),
        "train.steps": steps // len(TASKS),
    }


def undisturbed(
    study: str, settings: Mapping[str, Any], root: pathlib.Path, programs: pathlib.Path | None
) -> tuple[float, tuple[Any, ...]]:
    """Seconds and outcome of a run that is left alone; where programs are shared, the second."""
    found = []
    for name in ("first", "calm") if programs is not None else ("calm",):
        begin = time.perf_counter()
        finish(command(study, {**settings, "run_dir": root / name}), programs)
        found.append((time.perf_counter() - begin, outcome(root / name)))
    if found[0][1] != found[-1][1]:
        raise SystemExit("two undisturbed runs differ: there is nothing to compare with")
    last = metrics(root / "calm")[-1]
    shown = {key: round(value, 6) for key, value in last.items() if "token" not in key}
    print(f"undisturbed: {found[-1][0]:.1f} s, its last row: {shown}", flush=True)
    return found[-1]


def main() -> None:
    """Parse, run, compare, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", choices=("unlearn", "continual"), default="unlearn")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.kills < 1 or options.steps < SAVE_EVERY:
        parser.error(f"at least 1 kill and {SAVE_EVERY} steps")
    root = pathlib.Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    stream = options.study == "continual"
    settings = prepare(root, options.study, options.steps)
    programs = root / "programs" if stream else None
    length, expected = undisturbed(options.study, settings, root, programs)
    draw, stages, identical = random.Random(options.seed), collections.Counter(), 0
    aims = itertools.cycle(CONTINUAL if stream else UNLEARN)
    for index, aim in zip(range(options.kills), aims, strict=False):
        run = root / f"run{index}"
        arguments = command(options.study, {**settings, "run_dir": run})
        moment = moments(draw, options.steps, length)[aim]
        while not kill(start(arguments, programs), run, moment, draw.uniform(0, moment.delay)):
            shutil.rmtree(run)  # it ended first: that was no kill
        stage, steps = left(run, options.steps), len(metrics(run))
        finish(arguments, programs)
        same = outcome(run) == expected
        stages[stage] += 1
        identical += same
        verdict = "identical" if same else f"DIFFERENT, kept in {run}"
        print(f"{index + 1:>3}  aim {aim:<8} in {stage:<20} step {steps:>3}  {verdict}", flush=True)
        if same:
            shutil.rmtree(run)
    print("".join(f"\n{stage:<20} {count:>3}" for stage, count in stages.most_common()), "\n")
    if identical == options.kills:
        shutil.rmtree(root)
    told = {"steps": options.steps, "identical": identical, "of": options.kills}
    print(json.dumps({**told, "stages": dict(stages)}))
    sys.exit(identical != options.kills)


if __name__ == "__main__":
    main()
