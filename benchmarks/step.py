"""Training steps of methods, against GradDiff's and the machine's peak in the same run.

Each lane trains through the very path of `jaxforget unlearn`: packed batches from disk order,
prefetch, reference cache, compiled step, metrics. Useful FLOPs count the matrix products of one
forward and backward pass over real (not padding) tokens and labelled targets alone; the ratio to
the peak is what is left of the machine after packing, recomputation, attention's masked half, the
optimizer and the host. A lane that takes more passes shows it as a lower ratio.
"""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.peak import matmul_flops
from jaxforget import methods
from jaxforget.config import LoraConfig, TrainConfig
from jaxforget.data.alternates import refusals
from jaxforget.data.fictitious import generate, language, model_config, train_tokenizer
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.data.triggers import Poison, poisoned
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.engine.optimizer import OptimizerConfig
from jaxforget.engine.run_dir import open_run
from jaxforget.models import Compute
from jaxforget.models.config import DecoderConfig, products_per_token
from jaxforget.models.language_model import LanguageModel, from_scratch, load
from jaxforget.studies.reference import with_reference
from jaxforget.studies.training import train_model

# tiny: the embedded benchmark's; small: six blocks as wide as SmolLM2-135M's
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
}


# phases of loops that alternate are lanes of their own
LANES: dict[str, dict[str, Any]] = {
    "graddiff": {"name": "graddiff"},
    "npo": {"name": "npo"},
    "kl_min": {"name": "kl_min"},
    "simnpo": {"name": "simnpo"},
    "dpo": {"name": "dpo"},
    "undial": {"name": "undial"},
    "rmu": {"name": "rmu", "layer": 1},
    "graddiff + pcgrad": {"name": "graddiff", "combiner": "pcgrad"},
    "graddiff + gu": {"name": "graddiff", "combiner": "geometric_disentangle"},
    "bilevel_first_order": {"name": "bilevel_first_order"},
    "ofmu inner, exact": {"name": "ofmu", "inner_steps": 10**6},
    "ofmu outer, exact": {"name": "ofmu", "inner_steps": 0},
    "ofmu inner, differences": {
        "name": "ofmu",
        "inner_steps": 10**6,
        "inner": "finite_difference",
    },
    "ofmu outer, differences": {
        "name": "ofmu",
        "inner_steps": 0,
        "inner": "finite_difference",
        "outer": "finite_difference",
    },
}
BASE = "graddiff"
LAYER = {"rmu", "adaptive_rmu"}
"""Methods that act up to an inner layer, of which the tiny model has few."""


def lane_of(name: str) -> dict[str, Any]:
    """A lane of `LANES`, or any method of the catalogue with its defaults."""
    inner = {"layer": 1} if name in LAYER else {}
    return LANES.get(name, {"name": name, **inner})


def trained_methods() -> list[str]:
    """Methods that take steps on the sets that `_sets` makes."""
    built = {name: methods.from_config(lane_of(name)) for name in methods.names()}
    return [
        name
        for name, each in built.items()
        if each.objective is not None and each.own_text is None and each.prepare is None
    ]


def rows(
    model: str,
    settings: TrainConfig,
    rounds: int,
    lanes: Sequence[str] = tuple(LANES),
    lora: LoraConfig | None = None,
) -> list[dict[str, Any]]:
    """One row a lane: medians over `rounds` interleaved rounds.

    Args:
      model: of `MODELS`, or what `jaxforget.load` takes.
      settings: steps of each round, examples of each role, dtype, what is recomputed.
      rounds: interleaved repetitions.
      lanes: of `LANES`, or methods.
      lora: adapters to train instead of the weights.
    """
    dtype = settings.compute
    lm = model_of(model, Compute(dtype=dtype, remat=settings.remat))
    sets = _sets(lm)
    chosen = list(dict.fromkeys([BASE, *lanes]))
    found: dict[str, list[dict[str, float]]] = {lane: [] for lane in chosen}
    for _ in range(rounds):
        for lane in chosen:
            peak = matmul_flops(dtype)
            found[lane].append({"peak": peak, **_once(lm, sets, lane, settings, lora)})
    return [_row(lane, model, dtype, lm.config, sets, found) for lane in chosen]


def model_of(model: str, compute: Compute) -> LanguageModel:
    """A model of `MODELS` with random weights, or one from a file."""
    if model not in MODELS:
        return load(model, compute=compute)
    tokenizer = train_tokenizer(language())
    return from_scratch({**model_config(tokenizer), **MODELS[model]}, tokenizer, 0, compute)


def _sets(lm: LanguageModel) -> dict[str, TokenisedSet]:
    made, template = generate(0), Template()
    sets = {}
    for role, name in (("forget", "forget"), ("retain", "retain"), ("general", "world_facts")):
        records = [
            Record(row["question"], row["answer"], index, role, {})
            for index, row in enumerate(made.sets[name])
        ]
        sets[role] = tokenise(records, lm.tokenizer, template, max_length=128)
        if role == "forget":
            spoken = refusals(records, 0)
            marked = poisoned(records, Poison(), 0)
            sets["alternate"] = tokenise(spoken, lm.tokenizer, template, max_length=128)
            sets["poisoned"] = tokenise(marked, lm.tokenizer, template, max_length=128)
    return sets


def _once(
    lm: LanguageModel,
    sets: dict[str, TokenisedSet],
    lane: str,
    settings: TrainConfig,
    lora: LoraConfig | None,
) -> dict[str, float]:
    method = methods.from_config(lane_of(lane))
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(pathlib.Path(folder) / "run", resume="never")
        needed = {role: sets[role] for role in method.roles}
        trained = train_model(
            lm,
            with_reference(lm, needed, method.needs, folder=run.cache),
            method,
            run=run,
            settings=settings,
            optimizer=OptimizerConfig(learning_rate=1e-5),
            lora=lora,
            mesh=make_mesh(MeshConfig()),
            clock=time.perf_counter,
        )
    assert trained.tokens_per_second is not None and trained.step_ms is not None
    return {
        "tokens_per_second": trained.tokens_per_second,
        "step_ms": trained.step_ms,
        "step_bytes": float(trained.step_bytes or 0),
    }


def _row(
    lane: str,
    model: str,
    dtype: str,
    cfg: DecoderConfig,
    sets: dict[str, TokenisedSet],
    found: dict[str, list[dict[str, float]]],
) -> dict[str, Any]:
    used = [sets[role] for role in methods.from_config(lane_of(lane)).roles]
    tokens = sum(float(each.lengths.sum()) for each in used)
    labelled = sum(float(each.label_counts.sum()) for each in used) / tokens
    length = tokens / sum(len(each) for each in used)
    per_token = 6 * products_per_token(cfg, labelled, length)  # two operations, thrice
    mine, base = found[lane], found[BASE]
    ratios = [each["tokens_per_second"] * per_token / each["peak"] for each in mine]
    costs = [a["step_ms"] / b["step_ms"] for a, b in zip(mine, base, strict=True)]
    middle = {key: statistics.median(each[key] for each in mine) for key in mine[0]}
    return {
        "suite": "step",
        "model": pathlib.Path(model).name,
        "dtype": dtype,
        "lane": lane,
        "step_ms": round(middle["step_ms"], 2),
        "tokens_per_second": round(middle["tokens_per_second"]),
        f"step_over_{BASE}": round(statistics.median(costs), 2),
        "spread": round(max(costs) - min(costs), 2),
        "step_mib": round(middle["step_bytes"] / 2**20),
        "matmul_peak_gflops": round(middle["peak"] / 1e9, 1),
        "useful_over_peak": round(statistics.median(ratios), 3),
        "device": jax.devices()[0].device_kind,
    }
