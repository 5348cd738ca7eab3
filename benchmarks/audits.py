"""Audits of methods on the fictitious people: what is left of the knowledge under every attack.

    python benchmarks/methods.py --methods ga graddiff+gu npo npo+gu rmu --chosen  # the models
    python benchmarks/audits.py --methods ga graddiff+gu npo npo+gu rmu

Every method is audited with the settings that `benchmarks/methods.py` chose, on every seed, beside
the model before and the oracle. Writes audits.json and prints two tables, means over the seeds,
least and most in brackets: what is left under every attack (0 is the oracle, 1 the model before),
and the steps of relearning after which half of what the model before knows is back.
"""

import argparse
import json
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jaxforget.engine.errors import UserError  # noqa: E402
from jaxforget.engine.files import write_json  # noqa: E402
from jaxforget.studies import audit  # noqa: E402

RELEARN = {"name": "relearn", "steps": 20, "learning_rates": [1e-3]}
QUICK = (
    "ask",
    {"name": "prompts", "kind": "prefix"},
    "logit_lens",
    "probe",
    "membership",
    "remind",
    *({**RELEARN, "text": text} for text in ("forget", "half", "unrelated")),
    {**RELEARN, "steps": 60},  # long enough for the oracle to learn it anew
    {"name": "quantise", "bits": 4},
)
"""A tenth of the default audit's time."""

SHARED = ("start", "oracle")  # models that every method of a seed is compared with

type Row = Mapping[str, Any]
"""One attack of results.json."""


def main() -> None:
    """Parse, audit, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "methods")
    parser.add_argument(
        "--methods", nargs="*", default=["ga", "graddiff+gu", "npo", "npo+gu", "rmu"]
    )
    parser.add_argument("--seeds", nargs="*", type=int, help="those of the models unless given")
    parser.add_argument("--limit", type=int, default=40, help="records of each set")
    parser.add_argument("--quick", action="store_true", help="attacks of QUICK alone")
    options = parser.parse_args()
    from jaxforget.cli import quiet_logs

    quiet_logs()
    made = json.loads((options.runs / "methods.json").read_text())
    settings = {row["method"]: row["settings"] for row in made["rows"]}
    found: dict[str, list[list[Row]]] = {}
    for seed in options.seeds or made["seeds"]:
        done: pathlib.Path | None = None
        for name in options.methods:
            if name not in settings:
                raise UserError(f"{name}: benchmarks/methods.py has not made it")
            print(name, seed, file=sys.stderr, flush=True)
            run = options.runs / str(seed) / f"{name}-{label(settings[name])}"
            if done is not None:
                _share(done, run / "audit")
            found.setdefault(name, []).append(_audited(run, options))
            done = run / "audit"
    write_json(options.runs / "audits.json", found)
    print(markdown(found), "\n\n", relearned(found), sep="")


def _audited(run: pathlib.Path, options: Any) -> list[Row]:
    data = run.parent / "data"
    sources = {
        name: {"path": str(data / f"{file}.jsonl")}
        for name, file in (("unrelated", "world_facts"), ("holdout", "holdout"))
    }
    config = {"run": str(run), "limit": options.limit, **sources}
    made = audit({**config, "attacks": list(QUICK)} if options.quick else config)
    return json.loads(made.run_dir.results.read_text())["attacks"]


def _share(done: pathlib.Path, audited: pathlib.Path) -> None:
    """Findings on the models that all methods are compared with; the audit keeps what fits."""
    for model in SHARED:
        if (done / "findings" / model).exists():
            target = audited / "findings" / model
            shutil.copytree(done / "findings" / model, target, dirs_exist_ok=True)


def label(settings: Mapping[str, Any]) -> str:
    """The end of a run directory's name, as `benchmarks/methods.py` makes it."""
    values = settings.values()
    return "-".join(f"{v}" if not isinstance(v, (dict, list)) else "x" for v in values)


def markdown(found: Mapping[str, Sequence[Sequence[Row]]]) -> str:
    """What is left: one row an attack, one column a method."""
    head = ["attack", *found]
    return _table(
        head,
        [
            [name, *(_cell([_named(rows, name)["left"] for rows in found[m]]) for m in found)]
            for name in _attacks(found)
        ],
    )


def relearned(found: Mapping[str, Sequence[Sequence[Row]]]) -> str:
    """Steps to half of what the model before knows: one row a text to relearn from."""
    lines = []
    first = next(iter(found.values()))
    for name in _attacks(found):
        if name.startswith("relearn"):
            cells = [_steps([_named(rows, name) for rows in found[m]], "audited") for m in found]
            oracle = _steps([_named(rows, name) for rows in first], "oracle")
            lines.append([name, *cells, oracle])
    return _table(["steps to half", *found, "oracle"], lines)


def _attacks(found: Mapping[str, Sequence[Sequence[Row]]]) -> list[str]:
    return [row["label"] for row in next(iter(found.values()))[0]]


def _named(rows: Sequence[Row], name: str) -> Row:
    return next(row for row in rows if row["label"] == name)


def _steps(rows: Sequence[Row], model: str) -> str:
    """Least to most over the seeds; "> last" where it is not reached."""
    found = []
    for row in rows:
        curve = row["curves"][model]["forget_prob"]
        half = 0.5 * row["curves"]["start"]["forget_prob"][0][1]
        found.append((reached(curve, half), curve[-1][0]))
    told = sorted((step is None, last if step is None else step) for step, last in found)
    words = [f"> {step:.0f}" if beyond else f"{step:.0f}" for beyond, step in told]
    return words[0] if words[0] == words[-1] else f"{words[0]} to {words[-1]}"


def reached(curve: Sequence[Sequence[float]], level: float) -> float | None:
    """The step at which a curve of (step, value) first reaches a level, on straight lines."""
    for (x0, y0), (x1, y1) in zip([curve[0], *curve], curve, strict=False):
        if y1 >= level:
            return x1 if y1 == y0 else x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return None


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(values: Sequence[float | None]) -> str:
    told = [value for value in values if value is not None]
    if not told:
        return ""
    return f"{sum(told) / len(told):.2f} ({min(told):.2f} to {max(told):.2f})"


if __name__ == "__main__":
    main()
