"""How long until something happens: the command's help, and a run's first step.

Against importing jax in the same way: what nobody can do without.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
_WORLD = """
import json, pathlib, sys
from jaxforget.data.fictitious import generate, language, model_config, train_tokenizer
from jaxforget.models.language_model import from_scratch
folder = pathlib.Path(sys.argv[1])
tokenizer = train_tokenizer(language())
from_scratch(model_config(tokenizer), tokenizer, 0).save_pretrained(folder / "model")
made = generate(0)
for name in ("forget", "retain"):
    text = "".join(json.dumps(row) + "\\n" for row in made.sets[name])
    (folder / f"{name}.jsonl").write_text(text)
"""


def rows(rounds: int) -> list[dict[str, Any]]:
    """Medians of seconds, and their ratio to an import of jax."""
    base = _median(lambda _: _seconds([sys.executable, "-c", "import jax"]), rounds)
    told = _median(lambda _: _seconds([sys.executable, "-m", "jaxforget", "--help"]), rounds)
    found = [("import jax", base), ("jaxforget --help", told)]
    with tempfile.TemporaryDirectory() as folder:
        world = pathlib.Path(folder)
        subprocess.run([sys.executable, "-c", _WORLD, folder], env=_environment(), check=True)
        found.append(("first step, nothing cached", _first_step(world, "cold")))
        found.append(
            ("first step, programs cached", _median(lambda k: _first_step(world, f"{k}"), rounds))
        )
    return [
        {
            "suite": "startup",
            "what": name,
            "seconds": round(seconds, 2),
            "over_import_jax": round(seconds / base, 2),
        }
        for name, seconds in found
    ]


def _first_step(world: pathlib.Path, name: str) -> float:
    """Seconds from the command to the logged first step of GradDiff."""
    run = world / f"run-{name}"
    config = {name: str(world / f"{name}.jsonl") for name in ("forget", "retain")}
    config |= {"model": str(world / "model"), "run_dir": str(run), "method": "graddiff"}
    file = world / "config.yaml"
    file.write_text(json.dumps(config))  # which is YAML, too
    command = [sys.executable, "-m", "jaxforget", "unlearn", str(file), "train.steps=1"]
    begin = time.time()
    done = subprocess.run(
        command,
        env=_environment(JAX_COMPILATION_CACHE_DIR=str(world / "programs")),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    return first["time"] - begin


def _seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, env=_environment(), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": path, **more}


def _median(measure: Callable[[int], float], rounds: int) -> float:
    return statistics.median(measure(k) for k in range(max(rounds, 3)))
