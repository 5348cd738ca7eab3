"""Tables over requests and over runs, from what runs have written."""

import json

import pytest
from studies import tiny
from typer.testing import CliRunner

from jaxforget import cli
from jaxforget.config import to_yaml
from jaxforget.engine.errors import UserError
from jaxforget.studies import unlearn
from jaxforget.studies.sequence import scalability, sustainability

SUITE = {"suite": "own", "generate": False, "limit": 4}


@pytest.fixture(scope="module")
def requests(world, tmp_path_factory):
    """A run of two requests of 3 and 5 rows."""
    file, run = str(world / "data" / "forget.jsonl"), tmp_path_factory.mktemp("seq") / "run"
    settings = tiny.settings(
        world,
        run,
        forget={"path": file, "rows": "0:3"},
        requests=[{"path": file, "rows": "3:8"}],
        train={"steps": 2, "batch_size": 2, "save_every": 0},
        evaluate={**SUITE, "forget": file, "retain": str(world / "data" / "retain.jsonl")},
    )
    return run, unlearn(settings).metrics


def finished(world, run, rows, method="npo", metrics=None):
    file = str(world / "data" / "forget.jsonl")
    run.mkdir()
    config = tiny.config(world, run, forget={"path": file, "rows": rows})
    (run / "config.yaml").write_text(to_yaml(config))
    found = {"forget_knowmem": 0.5} if metrics is None else metrics
    (run / "results.json").write_text(json.dumps({"method": method, "metrics": found}))
    return run


def test_a_run_of_requests_gives_a_row_a_request(requests):
    run, last = requests
    rows = sustainability(run)
    assert [(row["request"], row["forgotten"]) for row in rows] == [(1, 3), (2, 8)]
    first = json.loads((run / "requests" / "0" / "results.json").read_text())["metrics"]
    assert {key: rows[0][key] for key in first} == first
    assert {key: rows[1][key] for key in last} == last
    assert rows[0]["forget_prob"] != rows[1]["forget_prob"]


def test_runs_of_more_and_more_are_in_order_of_what_was_forgotten(world, tmp_path):
    runs = [finished(world, tmp_path / name, rows) for name, rows in (("b", "0:6"), ("a", "0:2"))]
    rows = scalability(runs)
    assert [(row["run"], row["forgotten"]) for row in rows] == [("a", 2), ("b", 6)]
    assert rows[0]["forget_knowmem"] == 0.5
    shown = CliRunner().invoke(cli.app, ["requests", *map(str, runs), "--json"])
    assert json.loads(shown.output)["rows"] == rows
    table = CliRunner().invoke(cli.app, ["requests", *map(str, runs)])
    assert table.exit_code == 0 and "forget_knowmem" in table.output


def test_what_cannot_be_tabulated_is_refused(world, tmp_path):
    one = finished(world, tmp_path / "one", "0:2")
    with pytest.raises(UserError, match="a run of one request"):
        sustainability(one)
    with pytest.raises(UserError, match="no finished run"):
        sustainability(tmp_path)
    with pytest.raises(UserError, match="was not evaluated"):
        scalability([finished(world, tmp_path / "bare", "0:2", metrics={})])
    with pytest.raises(UserError, match="differ in method: ga, npo"):
        scalability([one, finished(world, tmp_path / "two", "0:2", method="ga")])
    (one / "results.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        scalability([one])
