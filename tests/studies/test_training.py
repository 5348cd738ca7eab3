"""What training does to the model that it starts from."""

import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from studies import tiny

from jaxforget import methods
from jaxforget.config import LoraConfig, TrainConfig
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.engine.optimizer import OptimizerConfig
from jaxforget.engine.run_dir import open_run
from jaxforget.engine.types import Loop
from jaxforget.models import decoder
from jaxforget.models.language_model import load
from jaxforget.studies import training
from jaxforget.studies.training import step_of, train_model


def trained(world, place, lora=None, **options):
    """(the starting model after a step, what was trained)."""
    config = tiny.settings(world, place)
    lm = load(config["model"])
    sets = {
        role: tokenise(
            load_records(DataSource(config[role])), lm.tokenizer, Template(), max_length=128
        )
        for role in ("forget", "retain")
    }
    found = train_model(
        lm,
        sets,
        methods.get("graddiff"),
        run=open_run(place, resume="never"),
        settings=TrainConfig(steps=1, batch_size=2),
        optimizer=OptimizerConfig(),
        lora=lora,
        mesh=make_mesh(MeshConfig(data=1), jax.devices()[:1]),
        clock=time.perf_counter,
        **options,
    )
    return lm, found


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_the_callers_model_survives(world, tmp_path, lora):
    lm, found = trained(world, tmp_path / "run", lora)
    fresh = load(tiny.settings(world, tmp_path)["model"]).params
    jax.tree.map(np.testing.assert_array_equal, lm.params, fresh)
    if lora is None:
        before, after = (jax.tree.leaves(tree) for tree in (fresh, found.params))
        assert any((a != b).any() for a, b in zip(after, before, strict=True))


def test_a_model_that_is_consumed_becomes_the_state(world, tmp_path):
    kept, _ = trained(world, tmp_path / "kept")
    lm, consumed = trained(world, tmp_path / "consumed", consume=True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(lm.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(consumed.params))
    _, again = trained(world, tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, consumed.params, again.params)


@pytest.mark.parametrize(("second_order", "most", "unroll"), [(0, 8, 0), (1, 8, 1), (1, 0, 0)])
def test_layers_are_written_out_for_hessians_of_shallow_models(
    world, tmp_path, monkeypatch, second_order, most, unroll
):
    monkeypatch.setattr(training, "FEW_LAYERS", most)
    lm = load(tiny.settings(world, tmp_path)["model"])
    loop = Loop(lambda score, *_, **__: score, lambda *_: (), second_order=bool(second_order))
    method = replace(methods.get("graddiff"), loop=loop)
    score = step_of(lm, method, None, TrainConfig(), 1)
    # equal ways to compute give the very same function
    assert score is decoder.scorer(lm.config, replace(lm.compute, unroll=bool(unroll)))
