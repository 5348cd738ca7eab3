"""Learning with forgetting: the model writes what it forgets."""

import json

import numpy as np
import pytest
from studies import tiny

import jaxforget as jf
from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids
from jaxforget.engine.errors import UserError

LWF = {"name": "lwf", "every": 2, "share": 0.5, "learn_epochs": 0.5, "max_new_tokens": 6}


def run(world, out, method=LWF, **changes):
    train = {"steps": 6, "save_every": 2, **changes.pop("train", {})}
    return jf.unlearn(tiny.config(world, out, method=method, train=train, **changes))


def texts(out):
    return [json.loads(line) for line in (out / "own_text.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("lwf") / "run"
    run(world, out)
    return out


def test_the_most_conflicting_texts_of_the_model_itself_are_forgotten(world, finished):
    rows = texts(finished)
    given = [json.loads(line) for line in (world / "data" / "forget.jsonl").open()]
    assert [row["prompt"] for row in rows] == [each["question"] for each in given]
    picked = [row["compatibility"] for row in rows if row["chosen"]]
    others = [row["compatibility"] for row in rows if not row["chosen"]]
    assert len(picked) == round(0.5 * len(rows)) and min(picked) >= max(others)
    lm = jf.load(str(world / "base"))
    first = Record(given[0]["question"], given[0]["answer"], 0, "")
    asked = prompt_ids([first], lm.tokenizer, Template(), 128)
    new = lm.generate(lm.params, asked, max_new_tokens=6)[0]
    assert lm.tokenizer.decode(new, skip_special_tokens=True).strip() == rows[0]["answer"]
    forgetting = [row["forgetting"] for row in tiny.rows(finished)]
    assert forgetting == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("left", ["written", "judged", "damaged"])
def test_a_killed_run_goes_on_with_the_same_texts(world, finished, tmp_path, left):
    out = tmp_path / "run"
    kept = texts(finished)
    out.mkdir()
    if left == "written":
        kept = [{k: row[k] for k in ("row", "prompt", "answer")} for row in kept]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    (out / "own_text.jsonl").write_text(text[:-20] if left == "damaged" else text)
    run(world, out)
    assert texts(out) == texts(finished)
    for mine, theirs in zip(
        tiny.exported(out).values(), tiny.exported(finished).values(), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_what_is_never_forgotten_changes_nothing(world, tmp_path):
    fixed = {"row_length": 128}  # rows of other texts would be packed otherwise
    for select in ("highest", "lowest"):
        run(world, tmp_path / select, {**LWF, "every": 100, "select": select}, train=fixed)
    assert texts(tmp_path / "highest") != texts(tmp_path / "lowest")
    mine, theirs = (tiny.exported(tmp_path / select).values() for select in ("highest", "lowest"))
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_adapters_can_learn_and_forget_too(world, tmp_path):
    run(world, tmp_path / "run", lora={"rank": 4, "alpha": 8})
    assert any(row["compatibility"] != 0 for row in texts(tmp_path / "run"))


def test_several_requests_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="lwf writes one forget set"):
        run(world, tmp_path / "run", requests=[str(world / "data" / "forget.jsonl")])
