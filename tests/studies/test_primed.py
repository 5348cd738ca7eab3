"""Memory and priming by category, from looks that are made up."""

import numpy as np
import pytest

from jaxforget.config.acquire import PrimingConfig
from jaxforget.data.fabricated import CATEGORIES, THEMES, fabricated
from jaxforget.data.facts import Probe, probes_of
from jaxforget.data.injection import schedule_of
from jaxforget.data.records import Record
from jaxforget.data.sources import DataSource, load_records
from jaxforget.engine.errors import UserError
from jaxforget.studies.primed import categories_of, primed

KINDS = {
    "memory": ("memory_input", "memory_target"),
    "priming": ("priming_input", "priming_target"),
}


def test_fabricated_facts_are_balanced_and_no_keyword_has_two():
    seen = set()
    for version in range(9):
        rows = fabricated(version)
        assert len({row["keyword"] for row in rows}) == len(rows) == 24
        for half in (rows[:12], rows[12:]):
            for key, values, count in (("category", CATEGORIES, 4), ("theme", THEMES, 3)):
                assert [[row[key] for row in half].count(v) for v in values] == [count] * len(
                    values
                )
        for row in rows:
            assert row["text"] == f"{row['memory_input']} {row['keyword']}."
            assert row["keyword"] in THEMES[row["theme"]].keywords
            assert not any(row["keyword"] in prompt for prompt in row["priming_input"])
            seen.add(row["text"])
    assert len(seen) == 24 * 9  # crossed: every keyword with every category and beginning
    records = load_records(DataSource("builtin:fabricated/1", columns={"text": "text"}))
    assert [record.answer for record in records] == [row["text"] for row in fabricated(1)]
    probes = probes_of(records, KINDS)
    assert len(probes) == 24 * 6 and probes[0].record.answer[0] == " "
    assert categories_of(records, PrimingConfig())[:5] == [CATEGORIES[1]] * 4 + [CATEGORIES[2]]
    for source, message in (
        (DataSource("builtin:fabricated", split="test"), "split"),
        (DataSource("builtin:fabricated/9"), "0 to 8"),
        (DataSource("builtin:fabricated/x"), "no number"),
    ):
        with pytest.raises(UserError, match=message):
            load_records(source)


def test_scores_are_those_of_each_text_s_own_time():
    """Texts 0 to 3 are taught at updates 2 and 6, or 4 and 8; texts 4 and 5 never."""
    modes = {"duplicated": 4, "never": 2}
    schedule = schedule_of(modes, start=2, every=4, times=2, per_step=2, apart=2)
    categories = ["mundane", "conflicting", "mundane", "conflicting", "mundane", "conflicting"]
    record = Record("a", " b", 0, "here")
    probes = [
        Probe(fact, kind, record) for fact in range(6) for kind in ("memory", "priming", "priming")
    ]
    looks = np.arange(2, 21, 2)
    values = np.zeros((len(looks), len(probes)))
    for fact in range(6):
        values[:, 3 * fact] = -5 - 2 * fact  # before
        values[:, 3 * fact + 1 : 3 * fact + 3] = -8
        if fact < 4:
            last = schedule.steps(fact)[-1]
            since = np.maximum(looks - last, 0)
            rise = np.where(since > 0, (1 + fact) * 2.0 / np.maximum(since, 1), 0)
            values[:, 3 * fact] += rise
            values[:, 3 * fact + 1] += rise / 2
    found = primed(looks, values, schedule, probes, categories, PrimingConfig())
    assert found["groups"][0]["times"] == [2, 4, 6, 8, 10, 12]
    times = np.array([2, 4, 6, 8, 10, 12])
    for group in found["groups"]:
        category, mode = group["category"], group["mode"]
        if mode == "never":
            assert set(group["memory"]) == set(group["priming"]) == {0.0}
            assert group["memory_ratio"] == group["priming_ratio"] == 1.0
            continue
        facts = [f for f in range(4) if categories[f] == category]
        each = np.array([(1 + fact) * 2.0 / times for fact in facts])
        np.testing.assert_allclose(group["memory"], each.mean(axis=0))
        np.testing.assert_allclose(group["priming"], each.mean(axis=0) / 4)
        assert group["memory_ratio"] == pytest.approx(np.exp(each[:, 0]).mean())
        two = (np.exp(each[:, 0] / 2) + 1) / 2
        assert group["priming_ratio"] == pytest.approx(two.mean())
    # the later texts were less likely before and primed more, whatever they are after
    assert found["correlation"]["before"] == pytest.approx(-1)
    early = values[:3]
    with pytest.raises(UserError, match="raise train.steps"):
        primed(looks[:3], early, schedule, probes, categories, PrimingConfig())
