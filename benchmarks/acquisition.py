"""Factual acquisition and few-shot memory; the tables of retention.md.

    python benchmarks/acquisition.py --data DATA                              # from scratch
    python benchmarks/acquisition.py --data DATA --only facts --model MODEL   # a pretrained model

DATA (or the environment's JAXFORGET_DATA) holds `fictional_knowledge/` and `text_domains/`. The
model is trained on the domains, and on the way facts, or sentences, are put into its batches. A run
that was stopped goes on when the same command is given again.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from jaxforget import config as configs  # noqa: E402
from jaxforget.config.acquire import AcquireConfig  # noqa: E402
from jaxforget.data.injection import Schedule, schedule_of  # noqa: E402
from jaxforget.evals import acquisition as acq  # noqa: E402

SENTENCES, EXPOSURES = 32, 30  # and as many foils
PRETRAINED: dict[str, Any] = {
    "scratch": None,
    "injection": {
        "modes": {"paraphrased": 6, "duplicated": 6, "never": 6},
        "start": 16,
        "every": 48,
        "times": 2,
        "per_step": 1,
        "apart": 4,
    },
    "look": {"every": 4, "window": 24},
    "max_length": 384,
    "lora": {"rank": 32, "alpha": 64.0},
    "train": {
        "steps": 232,
        "batch_size": 2,
        "compute": "bfloat16",
        "remat": "none",
        "log_every": 8,
        "save_every": 24,
    },
    "optimizer": {
        "learning_rate": 5e-4,
        "schedule": "constant",
        "warmup_fraction": 0.03,
        "beta2": 0.95,
        "weight_decay": 0.1,
    },
}
"""What a run with a pretrained model changes in the shipped configuration."""


def base_of(data: pathlib.Path) -> list[dict[str, Any]]:
    """Training text of every domain."""
    files = sorted((data / "text_domains").glob("*.train.txt.gz"))
    return [{"path": str(file), "format": "text"} for file in files]


def facts_config(data: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """The shipped configuration on real data."""
    file = data / "fictional_knowledge" / "fictional_knowledge_paraphrased.json.gz"
    tree = configs.as_tree(
        configs.load(AcquireConfig, ROOT / "configs" / "continual" / "acquisition.yaml")
    )
    facts = {"path": str(file), "columns": {"text": "train_context"}}
    return tree | {"facts": facts, "base": base_of(data), "run_dir": str(out / "facts")}


def pretrained_config(data: pathlib.Path, out: pathlib.Path, model: str) -> dict[str, Any]:
    """Facts put into the further training of a pretrained model, by adapters."""
    run = str(out / f"facts-{pathlib.Path(model).stem}")
    return facts_config(data, out) | PRETRAINED | {"model": model, "run_dir": run}


def sentences_config(data: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Sentences of held-out text, studied some times each; others of the same kind as foils.

    The model is the one that the facts were put into.
    """
    import gzip
    import re

    text = gzip.decompress((data / "text_domains" / "speeches.eval.txt.gz").read_bytes()).decode()
    whole = re.split(r"(?<=[.?!])\s+", re.sub(r"\s+", " ", text))
    fit = list(dict.fromkeys(each for each in whole if 60 <= len(each) <= 160))
    order = np.random.default_rng(0).permutation(len(fit))[: 2 * SENTENCES]
    file = out / "sentences.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": fit[place]}) + "\n" for place in order))
    common = facts_config(data, out)
    kept = ("base", "max_length", "train", "optimizer")
    return {name: common[name] for name in kept} | {
        "facts": str(file),
        "model": str(out / "facts"),
        "run_dir": str(out / "sentences"),
        "injection": {
            "modes": {"duplicated": SENTENCES, "never": SENTENCES},
            "every": SENTENCES // 8,
            "times": EXPOSURES,
            "per_step": 8,
        },
        "look": {"every": 4},
        "recall": {"at": [0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150]},
        "train": common["train"] | {"steps": SENTENCES // 8 * EXPOSURES + 150},
    }


def differences(run: pathlib.Path, config: AcquireConfig) -> dict[str, list[float]]:
    """Differences that retention.md quotes, each [value, low, high], by a bootstrap over facts."""
    looks = [json.loads(line) for line in (run / "looks.jsonl").read_text().splitlines()]
    steps = np.asarray([row["step"] for row in looks])
    injection, kinds = config.injection, list(config.probes)
    schedule = schedule_of(
        injection.modes,
        start=injection.start,
        every=injection.every,
        times=injection.times,
        per_step=injection.per_step,
        apart=injection.apart,
        seed=config.train.seed,
    )
    modes = np.asarray(schedule.modes)
    # [looks, facts, kinds, probes]: every fact has as many probes of each kind
    raw = np.asarray([row["logp"] for row in looks]).reshape(len(steps), len(modes), len(kinds), -1)
    net = raw - raw[:, modes == "never"].mean(axis=(1, 3), keepdims=True)
    facts = {mode: np.flatnonzero(modes == mode) for mode in ("duplicated", "paraphrased")}
    window, found = config.look.window, {}
    for label, curves in (("", raw), ("net ", net)):
        more = _decays(curves, steps, schedule, window, facts, kinds)
        found |= {f"{label}{key}": values for key, values in more.items()}
    return found | _gains(raw, steps, schedule, window, facts, kinds)


def _resampled(of: Callable[..., float], groups: Iterable[np.ndarray]) -> list[float]:
    """A value of groups of facts and its 95 % interval."""
    rng, groups = np.random.default_rng(0), list(groups)
    draws = [of(*(rng.choice(group, len(group)) for group in groups)) for _ in range(400)]
    return [of(*groups), *np.quantile(draws, [0.025, 0.975]).tolist()]


def _decays(
    curves: np.ndarray,
    steps: np.ndarray,
    schedule: Schedule,
    window: int,
    facts: Mapping[str, np.ndarray],
    kinds: Sequence[str],
) -> dict[str, list[float]]:
    """By how much faster what was duplicated decays than what was paraphrased."""
    times = acq.log_times(int(np.diff(steps).min()), int(steps[-1]) - schedule.end + 1 - window)
    found = {}
    for kind, name in enumerate(kinds):
        shares = {
            fact: acq.retainability(
                curves[:, fact, kind], steps, schedule.steps(fact), window, times
            )
            for fact in np.concatenate(list(facts.values())).tolist()
        }

        def constant(some: np.ndarray, shares: Any = shares) -> float:
            joined = np.concatenate([shares[fact] for fact in some.tolist()], axis=1)
            return acq.decay(times, acq.filtered_mean(joined)).constant

        found[f"a, {name}, duplicated less paraphrased"] = _resampled(
            lambda ours, theirs, of=constant: of(ours) - of(theirs), facts.values()
        )
    return found


def _gains(
    curves: np.ndarray,
    steps: np.ndarray,
    schedule: Schedule,
    window: int,
    facts: Mapping[str, np.ndarray],
    kinds: Sequence[str],
) -> dict[str, list[float]]:
    """By how much more is gained of one kind of probe than of the next, a fact's mean at a time."""

    def rise(fact: int) -> np.ndarray:
        own, met = curves[:, fact].reshape(len(steps), -1), schedule.steps(fact)
        best = acq.local_maximum(own, steps, met[-1], window)
        gains = own[best, np.arange(own.shape[1])] - own[np.searchsorted(steps, met[0])]
        return gains.reshape(curves.shape[2:]).mean(axis=1)

    rises = {fact: rise(fact) for fact in np.concatenate(list(facts.values())).tolist()}
    found = {}
    for label, modes in (*((mode, [mode]) for mode in facts), ("both", list(facts))):
        for one, other in ((0, 1), (1, 2)):

            def less(*groups: np.ndarray, a: int = one, b: int = other) -> float:
                some = np.concatenate(groups).tolist()
                return float(np.mean([rises[fact][a] - rises[fact][b] for fact in some]))

            found[f"gain, {label}, {kinds[one]} less {kinds[other]}"] = _resampled(
                less, [facts[mode] for mode in modes]
            )
    return found


def main() -> None:
    """Run both, print what retention.md quotes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=pathlib.Path, default=os.environ.get("JAXFORGET_DATA"))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "acquisition")
    parser.add_argument("--only", choices=("facts", "sentences"))
    parser.add_argument("--model", help="of the facts, as for `jaxforget acquire`; from scratch")
    parser.add_argument("overrides", nargs="*", help="such as train.steps=1000")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data or JAXFORGET_DATA must name the folder of the data")
    from rich.console import Console

    from jaxforget.cli import quiet_logs
    from jaxforget.report.console import live
    from jaxforget.studies import acquire

    quiet_logs()
    for name, tree in (("facts", facts_config), ("sentences", sentences_config)):
        if options.only not in (None, name):
            continue
        chosen = tree(options.data, options.out)
        if name == "facts" and options.model is not None:
            chosen = pretrained_config(options.data, options.out, options.model)
        config = configs.build(AcquireConfig, chosen)
        for override in options.overrides:
            key, _, value = override.partition("=")
            changed = configs.overridden(configs.as_tree(config), {key: json.loads(value)})
            config = configs.build(AcquireConfig, changed)
        with live(Console(stderr=True)) as events:
            result = acquire(config, events)
        for key, value in result.metrics.items():
            print(f"{name} {key:<52} {value if value is None else round(value, 4)}")
        if name == "facts":
            for key, values in differences(result.run_dir.path, config).items():
                print(f"{name} {key:<60} {[round(value, 3) for value in values]}")


if __name__ == "__main__":
    main()
