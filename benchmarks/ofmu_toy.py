"""Where OFMU's outer step may start: its three readings on a memorised toy, against retraining.

    python benchmarks/ofmu_toy.py

A network has memorised 600 points of two classes, 60 of them under the wrong label; those are to
be forgotten. 40 cycles of 5 inner steps and one outer step of unit length, full batches. For each
reading the settings nearest to a network that never saw the 60 points are shown, and how forgetting
depends on rho. Distance: |accuracy - that of retraining| summed over forget, retain and test set.
"""

import argparse
import functools
import itertools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jaxforget.combiners import weighted_sum  # noqa: E402
from jaxforget.engine.files import write_json  # noqa: E402
from jaxforget.engine.state import init_state  # noqa: E402
from jaxforget.engine.types import Scores, TokenBatch  # noqa: E402
from jaxforget.loops import OfmuSettings, ofmu  # noqa: E402
from jaxforget.objectives import graddiff  # noqa: E402

DIMENSIONS, WIDTH, CYCLES, INNER = 20, 64, 40, 5
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
BETAS = (0.0, 0.1, 0.5)
RHOS = (0.0, 1e-5, 1e-3, 1e-1)
NAMES = ("forget", "retain", "test")


def world(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Points float32 `[n, 20]` and labels of the sets; those to forget have the wrong one."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=DIMENSIONS)
    direction /= np.linalg.norm(direction)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 2, count)
        points = rng.normal(size=(count, DIMENSIONS)) + 1.7 * np.outer(2 * labels - 1, direction)
        return points.astype(np.float32), labels.astype(np.int32)

    points, labels = draw(600)
    return {
        "forget": (points[:60], 1 - labels[:60]),
        "retain": (points[60:], labels[60:]),
        "test": draw(2000),
    }


def logits(params: Any, points: Any) -> Any:
    """A network of one hidden layer; `[n, 2]`."""
    hidden = jnp.tanh(points @ params["in"]["w"] + params["in"]["b"])
    return hidden @ params["out"]["w"] + params["out"]["b"]


def fresh(seed: int) -> Any:
    """Random parameters."""
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "in": {
            "w": jax.random.normal(first, (DIMENSIONS, WIDTH)) / DIMENSIONS**0.5,
            "b": jnp.zeros(WIDTH),
        },
        "out": {"w": jax.random.normal(second, (WIDTH, 2)) / WIDTH**0.5, "b": jnp.zeros(2)},
    }


def batch_of(labels: np.ndarray) -> TokenBatch:
    """Classification as sequences of one target; `tokens` are rows of the set."""
    count = len(labels)
    ones = np.ones((count, 1), np.int32)
    return TokenBatch(
        tokens=jnp.arange(count, dtype=jnp.int32)[:, None],
        targets=jnp.asarray(labels)[:, None],
        segments=jnp.asarray(ones),
        positions=jnp.asarray(0 * ones),
        mask=jnp.asarray(ones, jnp.float32),
        example=jnp.arange(count, dtype=jnp.int32)[:, None],
    )


def scorer(sets: Any) -> Any:
    """Score function over the sets; a batch is told by its number of rows."""
    by_size = {len(labels): jnp.asarray(points) for points, labels in sets.values()}

    def score(params: Any, batch: TokenBatch, **_: Any) -> Scores:
        logp = jax.nn.log_softmax(logits(params, by_size[batch.tokens.shape[0]]))
        found = jnp.take_along_axis(logp, batch.targets, axis=-1)
        return Scores(found, batch.mask, batch.segments, batch.example)

    return score


@functools.partial(jax.jit, static_argnames="steps")
def teach(params: Any, points: Any, labels: Any, steps: int = 4000) -> Any:
    """Adam on the full set until it is memorised."""
    optimizer = optax.adam(3e-3)

    def loss(p: Any) -> Any:
        logp = jax.nn.log_softmax(logits(p, points))
        return -jnp.take_along_axis(logp, labels[:, None], axis=-1).mean()

    def step(carry: Any, _: None) -> Any:
        p, state = carry
        update, state = optimizer.update(jax.grad(loss)(p), state)
        return (optax.apply_updates(p, update), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, steps)[0][0]


def accuracies(params: Any, sets: Any) -> Any:
    """Of forget, retain and test set; `[3]`."""
    each = (
        (logits(params, points).argmax(-1) == labels).mean()
        for points, labels in (sets[name] for name in NAMES)
    )
    return jnp.stack(list(each))


def unlearned(params: Any, sets: Any, settings: OfmuSettings) -> np.ndarray:
    """Accuracies after all cycles for every rate of `RATES`; `[rates, 3]`."""
    loop, spec = ofmu(settings), graddiff(together=False)
    combiner = weighted_sum({"forget": 1.0, "retain": 1.0})
    batches = {name: batch_of(sets[name][1]) for name in ("forget", "retain")}

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def run(rate: Any, start: Any) -> Any:
        optimizer = optax.scale(-rate)
        step = loop.make(scorer(sets), spec.objective, combiner, optimizer)
        carried = loop.init(start, optimizer)
        state = init_state(start, optimizer, combiner, loop_state=carried)
        steps = CYCLES * (settings.inner_steps + 1)
        state, _ = jax.lax.scan(
            lambda s, _: (step(s, {}, batches, {})[0], None), state, None, steps
        )
        return accuracies(state.params, sets)

    return np.asarray(run(jnp.asarray(RATES), params))


def study(seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(accuracies of retraining, a row for every setting) for one toy."""
    sets = world(seed)
    everything = [np.concatenate(pair) for pair in zip(sets["forget"], sets["retain"], strict=True)]
    memorised = teach(fresh(seed), *everything)
    retrained = np.asarray(accuracies(teach(fresh(seed), *sets["retain"]), sets))
    rows = []
    for reading, beta, rho in itertools.product("ABC", BETAS, RHOS):
        settings = OfmuSettings(
            beta=beta, rho=rho, growth=1.05, inner_steps=INNER, reading=reading, normalise=True
        )
        for rate, found in zip(RATES, unlearned(memorised, sets, settings), strict=True):
            gap = float(np.abs(found - retrained).sum())
            point = dict(zip(NAMES, map(float, found), strict=True))
            rows.append(
                {"reading": reading, "beta": beta, "rho": rho, "rate": rate, "distance": gap}
                | point
            )
    return retrained, rows


def main() -> None:
    """Run the seeds, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "ofmu_toy.json")
    options = parser.parse_args()
    from rich.console import Console

    from jaxforget.report.tables import plain_table

    found = [study(seed) for seed in options.seeds]
    mean_retrained = np.mean([retrained for retrained, _ in found], axis=0)
    keys = [{k: row[k] for k in ("reading", "beta", "rho", "rate")} for row in found[0][1]]
    merged = [{**key, **_means([rows[i] for _, rows in found])} for i, key in enumerate(keys)]
    best = [
        min((row for row in merged if row["reading"] == reading), key=lambda row: row["distance"])
        for reading in "ABC"
    ]
    rate = best[0]["rate"]
    hazard = [row for row in merged if row["reading"] == "A" and row["rate"] == rate]
    write_json(
        options.out,
        {"seeds": options.seeds, "retrained": mean_retrained.tolist(), "rows": merged},
    )
    console = Console(width=120)
    console.print(f"retrained: {dict(zip(NAMES, mean_retrained.round(3).tolist(), strict=True))}")
    for title, rows in (("nearest to retraining", best), ("reading A as rho grows", hazard)):
        console.print(title)
        console.print(plain_table([_rounded(row) for row in rows]))
    print(json.dumps({"written": str(options.out)}))


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in ("distance", *NAMES)}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()}


if __name__ == "__main__":
    main()
