"""Facts injected into training: what is written is what scoring says, and the same after a kill."""

import csv
import json

import numpy as np
import pytest

from jaxforget.config import build
from jaxforget.config.acquire import AcquireConfig
from jaxforget.data.facts import probes_of
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.evals.teacher_forced import score_set
from jaxforget.models.language_model import load
from jaxforget.studies import acquire

PROBES = {"memorisation": ["begin", "end"], "semantic": ["asked", "end"]}
PLACES = ("Arl", "Bem", "Cor", "Dun", "Eft", "Fol")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    rows = [
        {
            "story": f"The mayor of {name} is old. {name} lies by a green sea.",
            "sort": "green" if name < "C" else "blue",
            "others": [f"By a green sea lies {name}, whose mayor is old."],
            "begin": [f"{name} lies by a", "The mayor of"],
            "end": ["green sea.", f"{name} is old."],
            "asked": [f"What is near {name} is a", "Old is who leads"],
        }
        for name in PLACES
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rng = np.random.default_rng(0)
    words = [*"abcdefgh", "sea", "mayor", "old", "The", "lies", "by"]
    (folder / "base.txt").write_text(" ".join(rng.choice(words, 4000)))
    return folder


def settings(data, run, **changes):
    """One paraphrased, two duplicated, one once and two never; four updates between two times."""
    tree = {
        "facts": {"path": str(data / "facts.jsonl"), "columns": {"text": "story"}},
        "base": str(data / "base.txt"),
        "paraphrases": "others",
        "probes": PROBES,
        "priming": {"memory": "memorisation", "priming": "semantic", "category": "sort"},
        "run_dir": str(run),
        "injection": {
            "modes": {"paraphrased": 1, "duplicated": 2, "once": 1, "never": 2},
            "start": 2,
            "every": 4,
            "times": 2,
            "per_step": 2,
            "apart": 2,
        },
        "look": {"every": 2, "window": 4, "resamples": 20, "batch_size": 2},
        "recall": {"at": [0, 3], "max_tokens": 12},
        "scratch": {"vocabulary": 320, "width": 32, "layers": 1, "heads": 2, "inner": 48},
        "max_length": 64,
        "train": {"steps": 26, "batch_size": 4, "log_every": 1, "save_every": 5, "remat": "none"},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
        "mesh": {"data": 1},
    }
    return {**tree, **changes}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("acquire") / "whole"
    return run, acquire(settings(data, run))


def looks(run):
    return [json.loads(line) for line in (run / "looks.jsonl").read_text().splitlines()]


def test_looks_are_before_every_presentation_and_say_what_scoring_says(data, whole):
    run, _ = whole
    rows = looks(run)
    # regular ones from update 2 on; recall before it, and 0 and 3 updates after 9 (2 + 2 + 4 + 1)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9, *range(10, 13, 2), *range(14, 27, 2)]
    assert [row["step"] for row in rows if "recall" in row] == [2, 9, 12]
    lm = load(run)
    source = DataSource(str(data / "facts.jsonl"), columns={"text": "story"})
    records = load_records(source)
    probes = probes_of(records, {k: tuple(v) for k, v in PROBES.items()})
    template = Template(kind="none", end=False)
    found = tokenise([each.record for each in probes], lm.tokenizer, template, max_length=64)
    table = score_set(lm.score, lm.params, found)
    parts = np.split(table.logp.astype(np.float64), table.offsets[1:-1])
    ours = rows[-1]["logp"][: len(probes)]
    np.testing.assert_allclose(ours, [part.mean() for part in parts], atol=2e-4)
    assert len(rows[-1]["logp"]) == len(probes) + len(PLACES)


def test_memory_and_priming_follow_from_the_looks(whole):
    run, result = whole
    results = json.loads((run / "results.json").read_text())
    (group,) = [g for g in results["priming"]["groups"] if g["mode"] == "once"]
    assert group["category"] == "blue" and group["texts"] == 1
    # fact 3 of four probes a fact, two of each kind; presented once
    rows = {row["step"]: np.asarray(row["logp"])[12:16] for row in looks(run)}
    times = group["times"]
    for kind, place in (("memory", 0), ("priming", 2)):
        fits = []
        for met in (2, 4):  # who comes first is drawn
            rise = [rows[met + time] - rows[met] for time in times]
            fits.append(np.allclose([r[place : place + 2].mean() for r in rise], group[kind]))
        assert sum(fits) == 1
    name = "blue/once/memory_start"
    assert result.metrics[name] == pytest.approx(group["memory"][0])
    assert "Memory and priming" in (run / "report.html").read_text()


def test_gains_and_retention_follow_from_the_looks(whole):
    run, result = whole
    rows = [row for row in looks(run) if row["step"] % 2 == 0]
    steps = [row["step"] for row in rows]
    curves = np.asarray([row["logp"] for row in rows])
    # facts 1 and 2 are duplicated; 4 probes a fact, the first two of them memorise
    results = json.loads((run / "results.json").read_text())
    group = next(
        g for g in results["groups"] if (g["mode"], g["kind"]) == ("duplicated", "memorisation")
    )
    assert group["probes"] == 4
    from jaxforget.data.injection import schedule_of

    modes = {"paraphrased": 1, "duplicated": 2, "once": 1, "never": 2}
    schedule = schedule_of(modes, start=2, every=4, times=2, per_step=2, apart=2)
    gains = []
    for fact in (1, 2):
        first, last = schedule.steps(fact)
        inside = [k for k, step in enumerate(steps) if last < step <= last + 4]
        for probe in (4 * fact, 4 * fact + 1):
            gains.append(curves[inside, probe].max() - curves[steps.index(first), probe])
    assert min(gains) > 0.1 and group["gain"] == pytest.approx(np.mean(gains))
    kept = group["retention"]
    assert kept["mean"][0] == 1 and kept["times"][0] == 0 and kept["probes"] == 4
    assert "retention" not in next(g for g in results["groups"] if g["mode"] == "never")
    assert {"net_gain", "net_retention"} <= set(group)
    assert result.metrics["duplicated/memorisation/gain"] == pytest.approx(group["gain"])


def test_recognition_and_recall_are_reported_by_mode(whole):
    run, _ = whole
    found = json.loads((run / "results.json").read_text())["recall"]
    assert set(found) == {"paraphrased", "duplicated", "once"}
    curve = found["duplicated"]["recall_tokens"]
    assert curve["times"] == [0, 3] and 0 <= curve["floor"] <= 1
    rows = looks(run)
    # duplicated facts are told from the two that were never seen
    losses = -np.asarray(rows[4]["logp"][-len(PLACES) :])
    right = np.mean([losses[1] < losses[4], losses[2] < losses[5]])
    assert found["duplicated"]["recognition"]["score"][0] == right
    assert found["duplicated"]["recognition"]["times"][:2] == [0, 1]


def test_curves_and_page_are_written(whole):
    run, _ = whole
    rows = list(csv.DictReader((run / "curves.csv").open()))
    measures = {row["measure"] for row in rows}
    assert {"logp", "retainability", "net_retainability", "recognition"} <= measures
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 2 + 2 + 1 + 3 and "http-equiv" not in page


def test_a_killed_run_ends_with_the_same_looks(data, whole, tmp_path, monkeypatch):
    torn = tmp_path / "torn"

    class Killed(BaseException):
        pass

    save = Checkpoints.save

    def killing(self, step, state, data):
        save(self, step, state, data)
        self.wait()
        if step == 10 and not (torn / "seen").exists():
            (torn / "seen").touch()
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", killing)
    with pytest.raises(Killed):
        acquire(settings(data, torn))
    with (torn / "looks.jsonl").open("a") as file:  # what was seen after the checkpoint is dropped
        file.write(json.dumps({"step": 12, "logp": [0.0]}) + '\n{"step": 14, "lo')
    acquire(settings(data, torn))
    assert looks(torn) == looks(whole[0])
    # a finished run is not done again
    before = (torn / "results.json").stat().st_mtime_ns
    acquire(settings(data, torn))
    assert (torn / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_looks_do_not_depend_on_the_number_of_devices(data, whole, tmp_path):
    split = acquire(settings(data, tmp_path / "split", mesh={"data": 2}))
    ours, theirs = (looks(run) for run in (tmp_path / "split", whole[0]))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one["logp"], other["logp"], atol=2e-3)
    assert split.metrics.keys() == whole[1].metrics.keys()


BAD = {
    "steps": ({"train": {"steps": 5, "batch_size": 4}}, "end before the last presentation"),
    "unread": ({"train": {"pairing": "longest"}}, "train.pairing: acquire has no use for it"),
    "window": ({"look": {"every": 2, "window": 5}}, "look.window: 5 updates reach beyond"),
    "every": ({"look": {"every": 3, "window": 4}}, "look.every: 3 does not divide"),
    "nothing": ({"probes": {}, "recall": None}, "nothing is measured"),
    "paraphrases": ({"paraphrases": None}, "row 0: it is to be paraphrased"),
    "facts": (
        {"injection": {"modes": {"once": 9, "never": 1}, "every": 4, "apart": 2}},
        "10 texts, but .* has 6",
    ),
    "foils": ({"injection": {"modes": {"once": 2}, "every": 4, "apart": 2}}, "as foils"),
    "model": ({"scratch": None}, "one of model and scratch"),
    "priming": ({"priming": {"memory": "memory"}}, "priming.memory: .*memorisation"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_refused_before_training(data, tmp_path, name):
    changes, message = BAD[name]
    with pytest.raises(UserError, match=message):
        acquire(settings(data, tmp_path / "run", **changes))


def test_one_source_may_stand_for_a_list(data, tmp_path):
    config = build(AcquireConfig, settings(data, tmp_path))
    assert [source.path for source in config.base] == [str(data / "base.txt")]
