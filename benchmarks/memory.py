"""Memory of a step, from XLA's analysis of the compiled program: nothing is run.

Bytes beside the weights (optimizer state, gradients, activations, blocks of logits) over those of
GradDiff with the same settings, for methods; over the defaults, for what saves memory.
"""

from typing import Any

import jax

from benchmarks.step import LANES
from jaxforget import config as configs
from jaxforget import methods
from jaxforget.config import UnlearnConfig
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.studies.abstract import abstract_step

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
}
METHODS = ("npo", "kl_min", "undial", "dpo", "graddiff + gu", "ofmu outer, differences")
SETTINGS: dict[str, dict[str, Any]] = {
    "remat: none": {"train": {"remat": "none"}},
    "remat: full": {"train": {"remat": "full"}},
    "accumulate: 4": {"train": {"accumulate": 4}},
    "moments: bfloat16": {"optimizer": {"moments": "bfloat16"}},
    "moments: int8": {"optimizer": {"moments": "int8"}},
    "lora: 16": {"lora": {"rank": 16}},
    "all that change no result": {"train": {"remat": "full", "accumulate": 4}},
}
LENGTH, LABELLED = 128, 64


def rows(batch: int) -> list[dict[str, Any]]:
    """One row a method with the default settings, then one a setting of NPO."""
    base = _bytes("graddiff", batch, {})
    found = [("graddiff", "defaults", base, base)]
    found += [(name, "defaults", _bytes(name, batch, {}), base) for name in METHODS]
    npo = found[1][2]
    found += [("npo", name, _bytes("npo", batch, more), npo) for name, more in SETTINGS.items()]
    return [
        {
            "suite": "memory",
            "method": method,
            "settings": settings,
            "over": "graddiff" if settings == "defaults" else "npo's defaults",
            "ratio": round(mine / other, 2),
            "mib_beside_weights": round(mine / 2**20),
        }
        for method, settings, mine, other in found
    ]


def _bytes(lane: str, batch: int, more: dict[str, Any]) -> float:
    given = {"model": "-", "forget": "-", "retain": "-", "run_dir": "-", "method": LANES[lane]}
    train = {"batch_size": batch, "compute": "float32", **more.get("train", {})}
    config = configs.resolve(UnlearnConfig, given | more | {"train": train})
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step = abstract_step(
        config,
        methods.from_config(config.method),
        SMOLLM2,
        mesh,
        length=LENGTH,
        labelled=LABELLED,
    )
    memory = step.compiled().memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    weights = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves((step.state.params, step.frozen))
    )
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes - weights
