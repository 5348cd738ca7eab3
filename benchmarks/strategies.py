"""Steps of the strategies against a naive step in the same run, and what they keep beside it.

One batch of equal size for every role, AdamW, the state donated, as the runs do; several steps are
timed at once. A strategy that rehearses sees twice the tokens; its ratio says so.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax

from benchmarks.step import _sets, model_of
from jaxforget.combiners import weighted_sum
from jaxforget.data.batches import PairedBatches
from jaxforget.engine.mesh import MeshConfig, make_mesh, put_rows, shardings
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.state import init_state
from jaxforget.engine.train import compile_step
from jaxforget.engine.types import Batches
from jaxforget.models import Compute
from jaxforget.models.language_model import LanguageModel
from jaxforget.strategies import from_config, make_step

LANES: dict[str, Any] = {
    "naive": "naive",
    "ewc": "ewc",
    "si": "si",
    "si, exact": {"name": "si", "storage": "exact"},
    "mas": "mas",
    "ema": "ema",
    "kappatune": "kappatune",
    "replay": "replay",
    "replay + ewc": ["replay", "ewc"],
    "agem": "agem",
    "lwf, live": {"name": "lwf", "teacher": "live"},
}
BASE = "naive"
GOALS = {"ewc": 1.15, "si": 1.15, "mas": 1.15, "agem": 2.1}
"""Most that a step may take of a naive one."""


def rows(
    model: str, dtype: str, batch: int, rounds: int, steps: int, lanes: Mapping[str, Any] = LANES
) -> list[dict[str, Any]]:
    """One row a lane: median ratio over interleaved rounds.

    Args:
      model: see `benchmarks.step.model_of`.
      dtype: of the compute.
      batch: examples of each role in a step.
      rounds: interleaved repetitions.
      steps: timed at once.
      lanes: name -> `strategy` of a configuration; `BASE` among them.
    """
    lm = model_of(model, Compute(dtype=dtype, remat="dots"))
    mesh = make_mesh(MeshConfig())
    batches = _batches(lm, batch, mesh)
    with jax.set_mesh(mesh):
        ready = {lane: _Lane(lm, choice, batches, mesh) for lane, choice in lanes.items()}
        found: dict[str, list[float]] = {lane: [] for lane in ready}
        for number in range(rounds):
            # turned round every other time: what comes first is not always the same
            order = list(ready) if number % 2 == 0 else list(reversed(ready))
            for lane in order:
                found[lane].append(ready[lane].seconds(steps))
    return [_row(lane, model, dtype, ready, found) for lane in ready]


def _batches(lm: LanguageModel, batch: int, mesh: Any) -> Batches:
    examples = _sets(lm)["retain"]
    drawn = PairedBatches({"train": examples}, batch, 0).plan(2)
    return {
        role: put_rows(drawn.at(step)[0]["train"], mesh)
        for step, role in enumerate(("train", "replay"))
    }


class _Lane:
    """A compiled step and its state."""

    def __init__(self, lm: LanguageModel, choice: Any, batches: Batches, mesh: Any):
        strategy = from_config(choice)
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-5), 1000)
        transform = strategy.transform(optimizer)
        combiner = weighted_sum({"nll": 1.0})
        placed = shardings(
            jax.eval_shape(lambda p: init_state(p, transform, combiner), lm.params), mesh
        )
        begin = jax.jit(lambda p: init_state(p, transform, combiner), out_shardings=placed)
        self.state = begin(jax.device_put(lm.params, placed.params))
        self.step = compile_step(make_step(strategy, lm.score, optimizer, task=1), mesh, placed)
        self.batches = {role: batches[role] for role in strategy.roles(1)}
        held = (self.state.opt_state.guard, self.state.params)
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in held]
        self.copies = sizes[0] / sizes[1]
        self.seconds(1)

    def seconds(self, steps: int) -> float:
        """Of one step, the mean over `steps`."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.step(self.state, {}, self.batches, {})
        jax.block_until_ready(self.state)
        return (time.perf_counter() - begin) / steps


def _row(
    lane: str, model: str, dtype: str, ready: dict[str, _Lane], found: dict[str, list[float]]
) -> dict[str, Any]:
    ratios = [mine / base for mine, base in zip(found[lane], found[BASE], strict=True)]
    return {
        "suite": "continual",
        "model": model,
        "dtype": dtype,
        "lane": lane,
        "step_ms": round(1e3 * statistics.median(found[lane]), 2),
        "step_over_naive": round(statistics.median(ratios), 3),
        "spread": round(max(ratios) - min(ratios), 3),
        "goal": GOALS.get(lane, "-"),
        "copies": round(ready[lane].copies, 2),
        "device": jax.devices()[0].device_kind,
    }
