"""What a step becomes on many devices, from its compiled program, and what plans say of pods.

    python benchmarks/scaling.py --devices 64      # virtual ones; `run.py` calls this for 8 and 64

Collectives are counted in the program that XLA makes for a mesh of virtual devices: their number
must not grow with the devices, and what each device holds must fall with them.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
from collections import Counter
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
}
MODELS: dict[str, dict[str, Any]] = {
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "3B": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
PLANNED = ("tpu-v5e:16", "tpu-v5p:8", "h100:8")
BATCH, LENGTH, LABELLED = 64, 256, 128


def rows() -> list[dict[str, Any]]:
    """Compiled for virtual devices, each count in a process of its own, then planned."""
    found: list[dict[str, Any]] = []
    for count in (8, 64):
        flag = f"--xla_force_host_platform_device_count={count}"
        found += json.loads(
            subprocess.run(
                [sys.executable, __file__, "--devices", str(count)],
                env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
        )
    return found


def planned() -> list[dict[str, Any]]:
    """NPO with all weights in bfloat16 compute, on devices that are not here."""
    from jaxforget.engine.hardware import devices_named
    from jaxforget.studies.plan import plan

    found: list[dict[str, Any]] = []
    for text in PLANNED:
        name, device, count = devices_named(text)
        for model, shape in MODELS.items():
            config, method = _configured({"fsdp": -1})
            made = plan(
                config,
                method,
                LLAMA | shape,
                device,
                count,
                length=LENGTH,
                labelled=LABELLED,
            )
            found.append(
                {
                    "suite": "planned",
                    "model": model,
                    "devices": f"{name}:{count}",
                    "fits": made.fits,
                    "share_of_memory": round(made.memory.total / device.memory, 2),
                    "bound_by": max(made.seconds, key=lambda each: made.seconds[each]),
                    "mfu": round(made.mfu, 2),
                }
            )
    return found


def _configured(mesh: dict[str, int]) -> Any:
    from jaxforget import config as configs
    from jaxforget import methods
    from jaxforget.config import UnlearnConfig

    given = {"model": "-", "forget": "-", "retain": "-", "run_dir": "-", "method": "npo"}
    train = {"batch_size": BATCH, "compute": "bfloat16"}
    config = configs.resolve(UnlearnConfig, given | {"train": train, "mesh": mesh})
    return config, methods.from_config(config.method)


def compiled(count: int) -> list[dict[str, Any]]:
    """Steps of SmolLM2-135M on this process' virtual devices."""
    import jax

    from benchmarks.memory import SMOLLM2
    from jaxforget.engine.mesh import MeshConfig, make_mesh
    from jaxforget.studies.abstract import abstract_step

    found, alone = [], None
    for mesh in ({"data": 1}, {"fsdp": count}, {"data": count}):
        config, method = _configured({"data": 1} | mesh)
        size = max(mesh.values())
        made = make_mesh(MeshConfig(**({"data": 1} | mesh)), jax.devices()[:size])
        step = abstract_step(config, method, SMOLLM2, made, length=LENGTH, labelled=LABELLED)
        program = step.compiled()
        held = program.memory_analysis().argument_size_in_bytes
        alone = alone or held
        pattern = rf"= \S.* ({'|'.join(KINDS)})(?:-start)?\("
        calls = Counter(re.findall(pattern, program.as_text()))
        found.append(
            {
                "suite": "scaling",
                "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.items()),
                "held_over_one_device": round(held / alone, 3),
                **{kind: calls.get(kind, 0) for kind in KINDS},
            }
        )
    return found


def main() -> None:
    """Print rows for so many devices."""
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, required=True)
    print(json.dumps(compiled(parser.parse_args().devices)))


if __name__ == "__main__":
    main()
