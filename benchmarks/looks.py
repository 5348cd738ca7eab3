"""A step with an evaluation of 64 probes after every update, against a plain one in the same run.

Three ways: a pass of its own, whose values the host waits for, as the studies do; the same pass,
read when the next step is under way; and as a part of the compiled step, read as late.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.step import _sets, model_of
from jaxforget.combiners import weighted_sum
from jaxforget.data.pack import assign, pack_all
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.stream import chosen
from jaxforget.engine.mesh import MeshConfig, make_mesh, put_rows, shardings
from jaxforget.engine.optimizer import OptimizerConfig, make_optimizer
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.state import init_state
from jaxforget.engine.train import compile_step
from jaxforget.engine.types import TokenBatch
from jaxforget.evals.probing import probe_scorer
from jaxforget.models import Compute
from jaxforget.models.language_model import LanguageModel
from jaxforget.strategies import from_config, make_step

PROBES, ROWS, LENGTH = 64, 8, 256
"""Question-answer pairs probed; rows and tokens of a batch of plain text, every token a target."""
LANES = ("naive", "waited for", "read later", "within the step")
GOAL = 1.3
"""Most that a step with its evaluation may take of a naive one."""


def rows(model: str, dtype: str, rounds: int, steps: int) -> list[dict[str, Any]]:
    """One row a lane: median ratio over interleaved rounds; arguments as `strategies.rows`."""
    lm = model_of(model, Compute(dtype=dtype, remat="none"))
    probes = chosen(_sets(lm)["retain"], np.arange(PROBES))
    mesh = make_mesh(MeshConfig())
    found: dict[str, list[float]] = {lane: [] for lane in LANES}
    with jax.set_mesh(mesh):
        ready = {lane: _Lane(lm, lane, probes, mesh) for lane in LANES}
        for number in range(rounds):
            for lane in LANES if number % 2 == 0 else reversed(LANES):
                found[lane].append(ready[lane].seconds(steps))
    return [_row(lane, model, dtype, probes, found) for lane in LANES]


def _text(lm: LanguageModel) -> TokenBatch:
    drawn = np.random.default_rng(0).integers(0, lm.config.vocab_size, (ROWS, LENGTH + 1))
    tokens, ones = drawn.astype(np.int32), np.ones((ROWS, LENGTH), np.int32)
    arrays: Any = (tokens[:, :-1], tokens[:, 1:], ones, np.cumsum(ones, 1) - 1, ones * 1.0)
    return TokenBatch(*arrays, example=np.arange(ROWS)[:, None])  # pyright: ignore


class _Lane:
    """A compiled step, its state, and how it is probed."""

    def __init__(self, lm: LanguageModel, lane: str, probes: TokenisedSet, mesh: Any):
        strategy, self.lane = from_config("naive"), lane
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-5), 1000)
        transform, combiner = strategy.transform(optimizer), weighted_sum({"nll": 1.0})

        def begin(params: Any) -> Any:
            return init_state(params, transform, combiner)

        placed = shardings(jax.eval_shape(begin, lm.params), mesh)
        self.state = jax.jit(begin, out_shardings=placed)(jax.device_put(lm.params, placed.params))
        step = make_step(strategy, lm.score, optimizer, task=1)
        length = -(-int(probes.lengths.max()) // 64) * 64
        count = len(assign(probes.lengths, length))
        self.batches = {"train": put_rows(_text(lm), mesh)}
        (packed,) = pack_all(probes, rows=count, length=length)
        self.packed = put_rows(packed, mesh)
        if lane == "within the step":
            self.batches["probe"], step = self.packed, _probed(step, lm)
        self.step = compile_step(step, mesh, placed)
        self.waited = probe_scorer(lm.score, probes, rows=count, mesh=mesh)
        self.queued = jax.jit(
            lambda params, batch: _sums(lm, params, batch), compiler_options=compiler_options()
        )
        self.seconds(1)

    def seconds(self, steps: int) -> float:
        """Of one step, the mean over `steps`."""
        begin, before = time.perf_counter(), None
        for _ in range(steps):
            self.state, metrics = self.step(self.state, {}, self.batches, {})
            if self.lane == "waited for":
                self.waited(self.state.params)
            if before is not None:
                np.asarray(before)
            before = metrics.get("probe")
            if self.lane == "read later":
                before = self.queued(self.state.params, self.packed)
        jax.block_until_ready((self.state, before))
        return (time.perf_counter() - begin) / steps


def _sums(lm: LanguageModel, params: Any, batch: TokenBatch) -> jax.Array:
    """Sum of the log-probabilities of every probe's targets."""
    scores = lm.score(params, batch)
    owner = jnp.take_along_axis(scores.example, jnp.maximum(scores.segments - 1, 0), axis=1)
    found = jnp.zeros(PROBES).at[jnp.maximum(owner, 0).ravel()]
    return found.add((scores.logp * scores.mask).ravel())


def _probed(step: Any, lm: LanguageModel) -> Any:
    """The step, and the probes under what it leaves."""

    def told(state: Any, frozen: Any, batches: Any, reference: Any) -> Any:
        state, metrics = step(state, frozen, {"train": batches["train"]}, reference)
        return state, {**metrics, "probe": _sums(lm, state.params, batches["probe"])}

    return told


def _row(
    lane: str, model: str, dtype: str, probes: TokenisedSet, found: dict[str, list[float]]
) -> dict[str, Any]:
    ratios = [mine / base for mine, base in zip(found[lane], found[LANES[0]], strict=True)]
    return {
        "suite": "looks",
        "model": model,
        "dtype": dtype,
        "lane": lane,
        "tokens": ROWS * LENGTH,
        "probe_tokens": int(probes.lengths.sum()),
        "step_ms": round(1e3 * statistics.median(found[lane]), 2),
        "step_over_naive": round(statistics.median(ratios), 3),
        "spread": round(max(ratios) - min(ratios), 3),
        "goal": "-" if lane == LANES[0] else GOAL,
        "device": jax.devices()[0].device_kind,
    }
