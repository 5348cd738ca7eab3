"""Plans against what XLA says of the compiled step, and what they say to a person."""

import json
import math

import jax
import pytest
from marks import slow_but
from studies.planned_runs import LLAMA, configured
from typer.testing import CliRunner

from jaxforget.cli import app
from jaxforget.engine.errors import UserError
from jaxforget.engine.hardware import DEVICES, devices_named
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.studies.abstract import abstract_step
from jaxforget.studies.plan import plan

QWEN = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": False, "num_hidden_layers": 5}
WIDE = {**LLAMA, "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 64}


CASES = {
    "all weights": (LLAMA, {}, 128),
    "everything recomputed": (LLAMA, {"train": {"batch_size": 64, "remat": "full"}}, 128),
    "nothing recomputed": (QWEN, {"train": {"batch_size": 16, "remat": "none"}}, 192),
    "adapters on eight shards": (WIDE, {"lora": {"rank": 8}, "mesh": {"fsdp": 8}}, 256),
    "npo on eight shards": (WIDE, {"method": "npo", "mesh": {"fsdp": 8}}, 128),
    "replicas of shards": (QWEN, {"mesh": {"data": 2, "fsdp": 4}}, 256),
    "micro-batches": (WIDE, {"train": {"batch_size": 16, "accumulate": 4}}, 128),
    "many small steps": (WIDE, {"train": {"batch_size": 2}, "optimizer": {"name": "lion"}}, 128),
}


SOON = {"adapters on eight shards", "npo on eight shards", "micro-batches"}


@pytest.mark.parametrize("name", slow_but(SOON, CASES))
def test_memory_is_what_xla_says(name):
    """In float32, which the CPU computes as it is; bfloat16 it computes through copies."""
    model, options, length = CASES[name]
    config, method = configured(**options)
    sizes = options.get("mesh", {"data": 1})
    count = math.prod(sizes.values())
    mesh = make_mesh(MeshConfig(**({"data": 1} | sizes)), jax.devices()[:count])
    shape = {"length": length, "labelled": length // 2}
    stats = abstract_step(config, method, model, mesh, **shape).compiled().memory_analysis()
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    reckoned = plan(config, method, model, DEVICES["h100"], count, on_host=True, **shape).memory
    assert reckoned.total - reckoned.transient == pytest.approx(held, rel=0.03)
    assert reckoned.total == pytest.approx(held + stats.temp_size_in_bytes, rel=0.15)


def test_shards_divide_what_is_held_and_replicas_do_not():
    shape = {"length": 256, "labelled": 128}
    alone, sharded, replicated = (
        plan(*configured(mesh=mesh), LLAMA, DEVICES["tpu-v5e"], count, **shape)
        for mesh, count in (({}, 1), ({"fsdp": 8}, 8), ({"data": 8}, 8))
    )
    assert alone.memory.weights / sharded.memory.weights >= 7.5
    assert alone.memory.state / sharded.memory.state >= 7.5
    assert replicated.memory.weights == alone.memory.weights
    assert alone.seconds["links"] == 0 < replicated.seconds["links"]
    assert alone.flops == sharded.flops == replicated.flops
    assert alone.seconds["compute"] == pytest.approx(8 * sharded.seconds["compute"])


def test_flops_are_those_of_the_products():
    found = plan(*configured(), LLAMA, DEVICES["h100"], 1, length=256, labelled=64)
    layer = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 704
    read = 2.25 * layer + 0.75 * 256 * (128 + 128)  # of the last layer, as of the head, a quarter
    each = read + 3 * 2 * 8 * 32 * 128 + 4096 * 256 / 4
    assert found.tokens == 64 * 256
    assert found.flops == pytest.approx(6 * each * found.tokens)
    lora = plan(*configured(lora={"rank": 4}), LLAMA, DEVICES["h100"], 1, length=256, labelled=64)
    assert lora.flops == pytest.approx(found.flops * 4 / 6)
    assert 0 < found.mfu <= 0.6


@pytest.mark.parametrize(
    ("text", "message"),
    [("v5e:8", "Did you mean 'tpu-v5e'"), ("h100:0", "'h100:8'"), ("h100:x", "'h100:8'")],
)
def test_devices_are_named(text, message):
    with pytest.raises(UserError, match=message):
        devices_named(text)
    assert devices_named("tpu-v5p:64")[2] == 64 and devices_named("h200")[2] == 1


def test_edits_take_no_steps_to_plan():
    with pytest.raises(UserError, match="ssd takes no steps"):
        plan(*configured(method="ssd"), LLAMA, DEVICES["h100"], 1, length=64, labelled=32)


def test_the_command_says_whether_a_run_fits(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**WIDE, "num_hidden_layers": 400}))
    model = [f"model={tmp_path}", "train.batch_size=4", "lora=null"]

    def told(*more):
        return CliRunner().invoke(app, ["plan", *more]).output

    small = told("configs/tofu/npo.yaml", *model, "--devices", "tpu-v5e:1")
    assert "It does not fit 1 x tpu-v5e" in small and "mesh.fsdp" in small
    large = told("configs/tofu/npo.yaml", *model, "mesh.fsdp=16", "--devices", "tpu-v5e:16")
    assert "It fits 16 x tpu-v5e" in large and "tokens/s" in large
    taught = ["configs/tofu/finetune.yaml", *model, "--devices", "h200", "--json"]
    found = json.loads(told(*taught))
    assert found["fits"] and found["memory"]["total"] > found["memory"]["weights"] > 0
    missing = told("configs/tofu/npo.yaml", f"model={tmp_path / 'nothing'}")
    assert "is no config.json" in missing
    assert "labelled 300 must be in 1..255" in told(
        "configs/tofu/npo.yaml", *model, "--labelled", "300"
    )
