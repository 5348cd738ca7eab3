"""Sixteen settings in one program against sixteen runs, on the embedded benchmark's model.

    python benchmarks/population.py

Both train NPO with adapters on the same data in this process. Two ratios: with compilation, as a
user waits for it (the single runs compile once and share the program where they can), and without,
from the median logged step times.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.step import _sets  # noqa: E402
from jaxforget.config import UnlearnConfig, build, overridden  # noqa: E402
from jaxforget.data.fictitious import language, model_config, train_tokenizer  # noqa: E402
from jaxforget.engine.mesh import MeshConfig, make_mesh  # noqa: E402
from jaxforget.engine.run_dir import open_run, read_metrics  # noqa: E402
from jaxforget.methods import from_config  # noqa: E402
from jaxforget.models import Compute  # noqa: E402
from jaxforget.models.language_model import from_scratch  # noqa: E402
from jaxforget.studies.population import Population, train_population  # noqa: E402
from jaxforget.studies.reference import with_reference  # noqa: E402
from jaxforget.studies.training import train_model  # noqa: E402

RATES, BETAS = (3e-4, 1e-3, 3e-3, 1e-2), (0.05, 0.1, 0.3, 1.0)


def configs_of(steps: int, batch: int) -> list[UnlearnConfig]:
    """The sixteen settings."""
    base = {
        "model": "-",
        "forget": "-",
        "run_dir": "-",
        "method": {"name": "npo"},
        "lora": {"rank": 8, "alpha": 16},
        "train": {"steps": steps, "batch_size": batch, "log_every": 4},
    }
    each = [{"optimizer.learning_rate": r, "method.beta": b} for r in RATES for b in BETAS]
    return [build(UnlearnConfig, overridden(base, one)) for one in each]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--at-once", type=int, help="settings computed side by side")
    options = parser.parse_args()
    from jaxforget.cli import quiet_logs

    quiet_logs()
    print(json.dumps(measure(options.steps, options.batch, options.at_once)))


def measure(steps: int, batch: int, at_once: int | None = None) -> dict[str, Any]:
    """Ratios of one program to single runs, and the largest difference of their parameters."""
    tokenizer = train_tokenizer(language())
    lm = from_scratch(model_config(tokenizer), tokenizer, 0, Compute(remat="dots"))
    settings = configs_of(steps, batch)
    method = from_config(settings[0].method)
    sets = {role: each for role, each in _sets(lm).items() if role in method.roles}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        sets = with_reference(lm, sets, method.needs, folder=root / "cache")
        begin = time.perf_counter()
        together = _together(lm, sets, settings, root, at_once)
        one_program = time.perf_counter() - begin
        begin = time.perf_counter()
        apart = [_alone(lm, sets, each, root, i) for i, each in enumerate(settings)]
        singles = time.perf_counter() - begin
        step = _step_ms(root / "together")
        single_steps = [_step_ms(root / f"alone{i}") for i in range(len(settings))]
    return {
        "settings": len(settings),
        "wall_over_single_runs": round(one_program / singles, 3),
        "step_over_single_steps": round(step / sum(single_steps), 3),
        "largest_difference": max(_gap(a, b) for a, b in zip(together, apart, strict=True)),
        "steps": steps,
        "batch": batch,
    }


def _together(
    lm: Any, sets: Any, settings: list[UnlearnConfig], root: pathlib.Path, at_once: int | None
) -> list[Any]:
    hyper = {
        "optimizer.learning_rate": [each.optimizer.learning_rate for each in settings],
        "method.beta": [each.method["beta"] for each in settings],
    }
    arrays = {key: np.asarray(values, np.float32) for key, values in hyper.items()}
    run = open_run(root / "together", resume="never")
    population = Population(settings, arrays, at_once)
    found = train_population(lm, sets, population, run=run, mesh=make_mesh(MeshConfig()))
    return [each.leaves for each in found]


def _alone(lm: Any, sets: Any, config: UnlearnConfig, root: pathlib.Path, index: int) -> Any:
    return train_model(
        lm,
        sets,
        from_config(config.method),
        run=open_run(root / f"alone{index}", resume="never"),
        settings=config.train,
        optimizer=config.optimizer,
        lora=config.lora,
        mesh=make_mesh(MeshConfig()),
        clock=time.perf_counter,
    ).params


def _step_ms(run: pathlib.Path) -> float:
    rows = read_metrics(run / "metrics.jsonl")[1:]
    return statistics.median(row["step_ms"] for row in rows)


def _gap(one: Any, other: Any) -> float:
    import jax

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


if __name__ == "__main__":
    main()
