"""Kill a run at random moments, resume it, and compare the end with an undisturbed run, bit by bit.

    python benchmarks/kill_and_resume.py --kills 20 --steps 60

A tiny model is fine-tuned by the command line in a child process, which is sent SIGKILL at a
random moment (while it starts, compiles, steps, saves or exports) and then started again until it
ends. Every disturbed run must leave the very bytes of the undisturbed one.
"""

import argparse
import hashlib
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


def command(data: pathlib.Path, run: pathlib.Path, steps: int) -> list[str]:
    """The command line of one run."""
    settings = {
        "model": data,
        "initialise": "random",
        "data": data / "retain.jsonl",
        "run_dir": run,
        "max_length": 128,
        "train.steps": steps,
        "train.batch_size": 8,
        "train.save_every": 5,
        "train.log_every": 5,
        "optimizer.learning_rate": 1e-3,
    }
    pairs = [f"{key}={value}" for key, value in settings.items()]
    empty = data / "empty.yaml"
    empty.write_text("{}\n")
    return [sys.executable, "-m", "jaxforget.cli", "finetune", str(empty), *pairs, "--json"]


def digest(run: pathlib.Path) -> str:
    """SHA-256 of the exported weights."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """The child, in its own process group so that a kill reaches all of it."""
    return subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(arguments: list[str]) -> None:
    """Run to the end or stop with the child's message."""
    child = start(arguments)
    _, error = child.communicate(timeout=600)
    if child.returncode != 0:
        raise SystemExit(f"a run failed with {child.returncode}: {error.decode()[-2000:]}")


def stage_of(run: pathlib.Path) -> str:
    """What the killed run had reached, judged by what it left."""
    if (run / "model").exists():
        return "after export"
    saved = run / "checkpoints"
    names = [path.name for path in saved.iterdir()] if saved.exists() else []
    if any("tmp" in name for name in names):
        return "while saving"
    numbers = [int(name) for name in names if name.isdigit()]
    if numbers:
        return f"after checkpoint {max(numbers)}"
    return "before the first checkpoint"


def main() -> None:
    """Parse, run, compare, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    root = pathlib.Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    from jaxforget.data.fictitious import write

    data = root / "data"
    write(data, 0)
    calm = root / "calm"
    finish(command(data, calm, options.steps))
    # timed a second time, with the programs compiled
    shutil.rmtree(calm)
    begin = time.perf_counter()
    finish(command(data, calm, options.steps))
    length, expected = time.perf_counter() - begin, digest(calm)
    draw, kills = random.Random(options.seed), []
    for index in range(options.kills):
        run = root / f"run{index}"
        arguments = command(data, run, options.steps)
        child, moment = start(arguments), draw.uniform(0.05, 1.0) * length
        time.sleep(moment)
        alive = child.poll() is None
        if alive:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        stage = stage_of(run) if alive else "had ended"
        finish(arguments)
        same = digest(run) == expected
        kills.append({"second": round(moment, 2), "stage": stage, "identical": same})
        print(f"{index + 1:>3}: killed at {moment:5.2f} s, {stage}: {same}", flush=True)
        shutil.rmtree(run)
    shutil.rmtree(root)
    identical = sum(kill["identical"] for kill in kills)
    print(json.dumps({"steps": options.steps, "identical": identical, "of": len(kills)}))
    sys.exit(identical != len(kills))


if __name__ == "__main__":
    main()
