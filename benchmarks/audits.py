"""Audits of methods on the fictitious people: what is left of the knowledge under every attack.

    python benchmarks/methods.py --methods ga npo npo+gu rmu    # first: the models
    python benchmarks/audits.py --methods ga npo npo+gu rmu

Every method is audited with the settings that `benchmarks/methods.py` chose, on every seed, beside
the model before and the oracle: 0 is the oracle, 1 the model before. Writes audits.json and prints
the table: means over the seeds, least and most in brackets.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jaxforget.engine.errors import UserError  # noqa: E402
from jaxforget.engine.files import write_json  # noqa: E402
from jaxforget.studies import audit  # noqa: E402


def main() -> None:
    """Parse, audit, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--methods", nargs="*", default=["ga", "npo", "npo+gu", "rmu"])
    parser.add_argument("--limit", type=int, default=40, help="records of each set")
    options = parser.parse_args()
    from jaxforget.cli import quiet_logs

    quiet_logs()
    made = json.loads((options.runs / "methods.json").read_text())
    found: dict[str, list[Mapping[str, float | None]]] = {}
    for name in options.methods:
        row = next((each for each in made["rows"] if each["method"] == name), None)
        if row is None:
            raise UserError(f"{name}: benchmarks/methods.py has not made it")
        for seed in made["seeds"]:
            print(name, seed, file=sys.stderr, flush=True)
            run = options.runs / str(seed) / f"{name}-{label(row['settings'])}"
            unrelated = {"path": str(options.runs / str(seed) / "data" / "world_facts.jsonl")}
            settings = {"run": str(run), "limit": options.limit, "unrelated": unrelated}
            found.setdefault(name, []).append(audit(settings).metrics)
        write_json(options.runs / "audits.json", found)
    print(markdown(found))


def label(settings: Mapping[str, Any]) -> str:
    """The end of a run directory's name, as `benchmarks/methods.py` makes it."""
    values = settings.values()
    return "-".join(f"{v}" if not isinstance(v, (dict, list)) else "x" for v in values)


def markdown(found: Mapping[str, Sequence[Mapping[str, float | None]]]) -> str:
    """One row an attack, one column a method."""
    attacks = list(next(iter(found.values()))[0])
    lines = [["attack", *found], ["---"] * (1 + len(found))]
    lines += [
        [name, *(_cell([each[name] for each in found[m]]) for m in found)] for name in attacks
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(values: Sequence[float | None]) -> str:
    told = [value for value in values if value is not None]
    if not told:
        return ""
    return f"{sum(told) / len(told):.2f} ({min(told):.2f} to {max(told):.2f})"


if __name__ == "__main__":
    main()
