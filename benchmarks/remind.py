"""REMIND on the fictitious people: is it told who was forgotten, and better than by the loss alone?

    python benchmarks/methods.py --methods ga npo npo+gu rmu --chosen    # first: the models
    python benchmarks/remind.py

Every model of `benchmarks/methods.py` is asked about three kinds of people: forgotten ones, others
that no model has read about, and those it was to keep; each record in the wording that was taught
and forgotten, and in one that nobody has read. A classifier that has seen none of a person's
records tells the kinds apart by the losses of a record and of its variants (REMIND), by the
record's own loss alone, and by all but that. The oracle never knew the forgotten ones: the first
two kinds are then one. Writes remind.json and prints the tables: AUCs, means over the seeds, with
95 % intervals over people; `gain` is REMIND's over the loss's on the same draws. Landscapes are
kept: a killed call continues.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from audits import label  # noqa: E402

from jaxforget.data.records import Record  # noqa: E402
from jaxforget.data.sources import DataSource, load_records  # noqa: E402
from jaxforget.engine.files import write_json  # noqa: E402
from jaxforget.engine.mesh import MeshConfig, make_mesh  # noqa: E402
from jaxforget.evals.attacks import AuditData  # noqa: E402
from jaxforget.evals.attacks.remind import (  # noqa: E402
    FPR,
    READINGS,
    Landscape,
    Remind,
    classified,
    landscape,
)
from jaxforget.evals.attacks.telling import clusters_of  # noqa: E402
from jaxforget.evals.clustered import Area, clustered_auc, difference, mean_area  # noqa: E402
from jaxforget.evals.privacy import roc_auc, tpr_at_fpr  # noqa: E402
from jaxforget.models.language_model import load  # noqa: E402

SETTINGS = Remind()
KINDS = {"forget": 10, "holdout": 20, "retain": 10}
"""People of each kind, at most; eight records each."""

WORDINGS = {"taught": ("taught",), "reworded": ("reworded",), "both": ("taught", "reworded")}
PAIRS = (("forget", "holdout"), ("forget", "retain"))
LOTS = 20  # divisions of the held-out people by lot

type Sides = tuple[list[Landscape], list[list[object]]]
"""By kind: landscapes, and whom each record is about."""


def main() -> None:
    """Parse, ask, tell apart, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--methods", nargs="*", default=["ga", "npo", "npo+gu", "rmu"])
    parser.add_argument("--seeds", nargs="*", type=int, help="those of the models unless given")
    parser.add_argument("--kinds", nargs="*", choices=tuple(KINDS), default=tuple(KINDS))
    options = parser.parse_args()
    made = json.loads((options.runs / "methods.json").read_text())
    places = {
        row["method"]: f"{row['method']}-{label(row['settings'])}"
        for row in made["rows"]
        if row["method"] in options.methods
    }
    models = {"oracle": "oracle", **places, "finetuned": "finetuned"}
    seeds = options.seeds or made["seeds"]
    asked = {
        (name, seed): _asked(options.runs / str(seed), place, options.kinds)
        for seed in seeds
        for name, place in models.items()
    }
    found = {
        wording: {
            name: _over_seeds([asked[name, seed] for seed in seeds], options.kinds, parts)
            for name in models
        }
        for wording, parts in WORDINGS.items()
    }
    lots = [_by_lot(asked["oracle", seed]) for seed in seeds]
    write_json(options.runs / "remind.json", {**found, "by_lot": lots})
    for wording in found:
        print(f"\n{wording}\n\n{markdown(found[wording])}")
    values = [value for each in lots for value in each]
    print(f"\nby lot: {np.mean(values):.3f}, deviation {np.std(values):.3f}")


def _asked(
    root: pathlib.Path, place: str, kinds: Sequence[str]
) -> dict[tuple[str, str], tuple[Landscape, list[object]]]:
    """By kind and wording: the landscape, and whom each record is about."""
    found, lm = {}, None
    for kind in kinds:
        file = root / "data" / f"{kind}.jsonl"
        records = load_records(DataSource(str(file)))[: 8 * KINDS[kind]]
        for wording, some in (("taught", records), ("reworded", _reworded(records))):
            file = root / "remind" / place / f"{kind}-{wording}.npz"
            if not file.exists():
                print(file, file=sys.stderr, flush=True)
                lm = lm or load(str(root / place))
                file.parent.mkdir(parents=True, exist_ok=True)
                data = AuditData(
                    some, [], make_mesh(MeshConfig(data=1)), max_length=128, batch_size=64
                )
                made = landscape(lm, some, data, SETTINGS)
                np.savez(file, **vars(made))
            with np.load(file) as kept:
                found[kind, wording] = Landscape(**kept), clusters_of(some, SETTINGS.by)
    return found


def _reworded(records: Sequence[Record]) -> list[Record]:
    return [
        replace(
            each,
            prompt=each.extra["paraphrased_question"],
            answer=each.extra["paraphrased_answer"],
        )
        for each in records
    ]


def _sides(asked: Mapping[Any, Any], kinds: Sequence[str], wordings: Sequence[str]) -> Sides:
    sets, clusters = [], []
    for kind in kinds:
        parts = [asked[kind, wording] for wording in wordings]
        sets.append(_joined([part for part, _ in parts]))
        clusters.append([name for _, names in parts for name in names])
    return sets, clusters


def _joined(parts: Sequence[Landscape]) -> Landscape:
    columns = {
        name: np.concatenate([vars(part)[name] for part in parts], axis=-1)
        for name in ("loss", "rise", "edited")
    }
    return Landscape(**columns, rank=parts[0].rank)


def _over_seeds(
    asked: Sequence[Mapping[Any, Any]], kinds: Sequence[str], wordings: Sequence[str]
) -> dict[str, Any]:
    """Of one model of every seed: AUCs of the pairs, and of one kind against the others."""
    row: dict[str, Any] = {}
    for pair in PAIRS:
        if not set(pair) <= set(kinds):
            continue
        areas: dict[str, list[Area]] = {name: [] for name in READINGS}
        rates: dict[str, list[float]] = {name: [] for name in READINGS}
        raw = []
        for seed, each in enumerate(asked):
            sets, clusters = _sides(each, pair, wordings)
            raw.append(float(roc_auc(*(-one.loss for one in sets))))
            for name in READINGS:
                one, other = _told(sets, clusters, name, seed)
                areas[name].append(_area(one[:, 0], other[:, 0], clusters, seed))
                rates[name].append(tpr_at_fpr(one[:, 0], other[:, 0], fpr=FPR))
        found = {name: mean_area(some) for name, some in areas.items()}
        row[" from ".join(pair)] = {
            **{name: _interval(area) for name, area in found.items()},
            "gain": _interval(difference(found["remind"], found["loss"])),
            "seeds": {name: [one.value for one in some] for name, some in areas.items()},
            "tpr": {name: float(np.mean(some)) for name, some in rates.items()},
            "raw_loss": raw,
        }
    if len(kinds) > 2:
        row["one from two"] = {
            name: float(np.mean([_macro(each, wordings, name, s) for s, each in enumerate(asked)]))
            for name in READINGS
        }
    return row


def _told(
    sets: Sequence[Landscape], clusters: Sequence[Sequence[object]], reading: str, seed: int
) -> list[np.ndarray]:
    return classified([READINGS[reading](each) for each in sets], clusters, SETTINGS, seed)


def _area(
    one: np.ndarray, other: np.ndarray, clusters: Sequence[Sequence[object]], seed: int
) -> Area:
    return clustered_auc(
        one, other, member_clusters=clusters[0], other_clusters=clusters[1], seed=seed
    )


def _interval(area: Area) -> list[float]:
    return [area.value, *area.interval()]


def _macro(asked: Mapping[Any, Any], wordings: Sequence[str], reading: str, seed: int) -> float:
    """Mean over the kinds of the AUC of its probability, its records against all others."""
    sets, clusters = _sides(asked, tuple(KINDS), wordings)
    chances = _told(sets, clusters, reading, seed)
    areas = []
    for kind, own in enumerate(chances):
        rest = np.concatenate([each for at, each in enumerate(chances) if at != kind])
        areas.append(roc_auc(own[:, kind], rest[:, kind]))
    return float(np.mean(areas))


def _by_lot(asked: Mapping[Any, Any]) -> list[float]:
    """REMIND's AUC where as many people as are forgotten are drawn from the held-out ones."""
    ((found,), (people,)) = _sides(asked, ["holdout"], WORDINGS["both"])
    count = len(set(_sides(asked, ["forget"], WORDINGS["both"])[1][0]))
    values, names = READINGS["remind"](found), list(dict.fromkeys(people))
    areas = []
    for lot in range(LOTS):
        order = np.random.default_rng(lot).permutation(len(names)).tolist()
        chosen = {names[at] for at in order[:count]}
        drawn = np.array([name in chosen for name in people], bool)
        clusters = [[name for name in people if (name in chosen) == side] for side in (True, False)]
        one, other = classified([values[drawn], values[~drawn]], clusters, SETTINGS, lot)
        areas.append(float(roc_auc(one[:, 0], other[:, 0])))
    return areas


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a model."""
    rows = [_row(model, row) for model, row in found.items()]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(model: str, row: Mapping[str, Any]) -> dict[str, str]:
    """Cells by column."""
    one = row[" from ".join(PAIRS[0])]
    cells = {"model": model, **{name: _cell(one[name]) for name in (*READINGS, "gain")}}
    cells["raw loss"] = f"{np.mean(one['raw_loss']):.2f}"
    cells |= {f"TPR {name}": f"{one['tpr'][name]:.2f}" for name in ("remind", "loss")}
    kept = row.get(" from ".join(PAIRS[1]), {})
    cells |= {f"kept: {name}": _cell(kept[name]) for name in ("remind", "loss") if kept}
    three = row.get("one from two", {})
    return cells | {
        f"of three: {name}": f"{three[name]:.2f}" for name in ("remind", "loss") if three
    }


def _cell(values: Sequence[float]) -> str:
    value, low, high = values
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
