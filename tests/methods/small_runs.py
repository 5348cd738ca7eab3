"""`jaxforget unlearn` on the small world, as all tests of methods call it."""

from jaxforget.engine.run_dir import read_metrics
from jaxforget.studies import unlearn


def run(world, out, method, **more):
    config = {
        "model": str(world / "model"),
        "forget": str(world / "forget.jsonl"),
        "retain": {"path": str(world / "retain.jsonl"), "rows": "0:16"},
        "general": str(world / "world_facts.jsonl"),
        "run_dir": str(out),
        "method": method,
        "max_length": 64,
        "train": {"steps": 3, "batch_size": 4, "log_every": 1, "seed": 0},
        "optimizer": {"learning_rate": 1e-3},
        **more,
    }
    result = unlearn(config)
    return result, read_metrics(out / "metrics.jsonl")
