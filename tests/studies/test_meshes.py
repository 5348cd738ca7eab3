"""The same run on differently shaped meshes: same examples, same losses, same checkpoints."""

import functools

import numpy as np
import pytest
from studies import tiny

from jaxforget.config import TrainConfig
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.models.language_model import load
from jaxforget.studies import unlearn
from jaxforget.studies.batches import plan_batches

MESHES = {
    "one": {"data": 1},
    "eight": {"data": 8},
    "four_by_two": {"data": 1, "fsdp": 4, "tensor": 2},
}
METHODS = ("npo", "kl_min")
PAIRS = [("one", "eight"), ("eight", "four_by_two"), ("four_by_two", "one")]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """Run directory of a method on a mesh, made when first asked for."""

    @functools.cache
    def run(method, mesh):
        place = tmp_path_factory.mktemp(f"{method}-{mesh}") / "run"
        unlearn(tiny.config(world, place, method=method, mesh=MESHES[mesh]))
        return place

    return run


@pytest.mark.parametrize(
    ("method", "mesh"),
    [
        ("npo", "eight"),
        ("npo", "four_by_two"),
        ("kl_min", "four_by_two"),
        pytest.param("kl_min", "eight", marks=pytest.mark.slow),
    ],
)
def test_every_step_has_the_same_losses_on_every_mesh(finished, method, mesh):
    alone, spread = tiny.rows(finished(method, "one")), tiny.rows(finished(method, mesh))
    assert [row["step"] for row in alone] == list(range(1, 21))
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.1  # a curve that moves
    tiny.same_curve(spread, alone)


def check_resumed(finished, world, tmp_path, method, saved, resumed):
    copy = tiny.only_checkpoint(finished(method, saved), tmp_path / "run", 10)
    unlearn(tiny.config(world, copy, method=method, mesh=MESHES[resumed]))
    assert "resuming after step 10 of 20" in (copy / "log.txt").read_text()
    tiny.same_curve(tiny.rows(copy), tiny.rows(finished(method, saved)))


@pytest.mark.parametrize(("saved", "resumed"), PAIRS)
def test_a_checkpoint_of_one_mesh_goes_on_alike_on_another(
    finished, world, tmp_path, saved, resumed
):
    check_resumed(finished, world, tmp_path, "npo", saved, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("saved", MESHES)
@pytest.mark.parametrize("resumed", MESHES)
def test_any_checkpoint_goes_on_alike_anywhere(finished, world, tmp_path, method, saved, resumed):
    check_resumed(finished, world, tmp_path, method, saved, resumed)


def test_a_step_sees_the_same_examples_whatever_the_mesh_and_the_micro_batches(world):
    tokenizer = load(world / "base").tokenizer
    sets = {
        role: tokenise(
            load_records(DataSource(path=str(world / "data" / f"{role}.jsonl"))),
            tokenizer,
            Template(),
            max_length=128,
        )
        for role in ("forget", "retain")
    }
    plans = []
    for mesh, accumulate in (("one", 1), ("eight", 1), ("four_by_two", 3)):
        settings = TrainConfig(steps=20, batch_size=8, accumulate=accumulate)
        plans.append(plan_batches(sets, settings, make_mesh(MeshConfig(**MESHES[mesh]))))
    assert len({batches.fingerprint for batches, _ in plans}) == 1
    rows = {batches.at(0)[0]["forget"].tokens.shape[0] for batches, _ in plans}
    assert len(rows) > 1  # the meshes do differ in their rows
    for step in range(20):
        seen = [seen_by(batches, step) for batches, _ in plans]
        assert seen[0] == seen[1] == seen[2]


def seen_by(batches, step):
    """Of every role: the examples of a step, and how many targets count."""
    made, _ = batches.at(step)
    return {
        role: (sorted(batch.example[batch.example >= 0].tolist()), int(np.sum(batch.mask)))
        for role, batch in made.items()
    }
