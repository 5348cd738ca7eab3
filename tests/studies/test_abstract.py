"""What a step is compiled to on meshes of eight devices: collectives, and bytes of each device."""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from studies.planned_runs import LLAMA, configured

from jaxforget import methods
from jaxforget.engine.mesh import MeshConfig, make_mesh
from jaxforget.models import decoder
from jaxforget.studies.abstract import abstract_step

MODEL = {**LLAMA, "num_hidden_layers": 2}
MATRICES = {"256,256": 2, "256,128": 2, "256,704": 2, "704,256": 1}  # of one layer
EMBEDDING = "4096,256"
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def abstract(mesh, **options):
    config, method = configured(**options)
    made = make_mesh(MeshConfig(**mesh), jax.devices()[: math.prod(mesh.values())])
    return abstract_step(config, method, MODEL, made, length=128, labelled=48)


def collectives(program):
    """(kind, in a loop?, its arrays as "dtype[sizes]") of every collective of a program."""
    found, inside = [], ""
    for line in program.as_text().splitlines():
        begun = re.match(r"(ENTRY )?%?[\w.\-]+ .*\{$", line)
        inside = line if begun else inside
        made = re.search(rf"= (.*?) ({KINDS})(-start)?\(", line)
        if made:
            arrays = re.findall(r"\w+\[[\d,]*\]", made[1])
            found.append((made[2], not inside.startswith("ENTRY"), arrays))
    return found


@pytest.fixture(scope="module")
def divided():
    with pytest.MonkeyPatch.context() as patch:  # layers in a loop, as those of deep models
        patch.setattr(decoder, "FEW_LAYERS", 0)
        step = abstract({"data": 1, "fsdp": 8})
        return step, step.compiled()


def test_weights_are_gathered_layer_by_layer_and_nothing_else_is(divided):
    _, program = divided
    gathered = Counter()
    for kind, looped, arrays in collectives(program):
        if kind == "all-gather":
            gathered.update((looped, array) for array in arrays)
    once = {(True, f"f32[{shape}]"): 2 * count for shape, count in MATRICES.items()}
    outside = {(False, f"f32[{EMBEDDING}]"): 1}
    tokens = {key: n for key, n in gathered.items() if key[1].startswith("s32")}
    # forward and backward each gather a layer's seven matrices, the embedding serves both ends
    assert gathered - Counter(tokens) == Counter(once | outside)
    assert sum(tokens.values()) <= 1


def test_gradients_are_summed_once_a_layer_and_never_the_activations(divided):
    step, program = divided
    lengths = [batch.tokens.shape[1] for batch in step.batches.values()]
    lengths = "|".join(map(str, {*lengths, sum(lengths)}))  # of a role's rows, of both side by side
    sums = [each for each in collectives(program) if each[0] in ("all-reduce", "reduce-scatter")]
    looped = [arrays for _, inside, arrays in sums if inside]
    assert len(looped) == 1  # all matrices of a layer in one
    every = {array for _, _, arrays in sums for array in arrays}
    assert not [array for array in every if re.search(rf"[\[,]({lengths})[,\]]", array)]
    assert f"f32[{EMBEDDING}]" in every


def test_layers_written_out_gather_their_weights_and_nothing_else_either():
    program = abstract({"data": 1, "fsdp": 8}).compiled()
    gathered = {
        array for kind, _, made in collectives(program) for array in made if "gather" in kind
    }
    weights = {f"f32[{shape}]" for shape in (*MATRICES, EMBEDDING)}
    assert {array for array in gathered if not array.startswith("s32")} == weights


def test_replicas_gather_nothing():
    program = abstract({"data": 8, "fsdp": 1}).compiled()
    assert {kind for kind, _, _ in collectives(program)} == {"all-reduce"}


def test_eight_shards_hold_an_eighth_of_the_state(divided):
    step, program = divided

    def held(leaf):
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    leaves = jax.tree.leaves(step.state)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    mine = sum(map(held, leaves))
    assert whole / mine >= 7.5
    arguments = program.memory_analysis().argument_size_in_bytes
    assert arguments == pytest.approx(mine, rel=0.05)


# OFMU's, which takes longest, is run with the other methods
TRACED = [name for name in methods.names() if methods.get(name).objective and name != "ofmu"]


@pytest.mark.parametrize("name", TRACED)
def test_the_step_of_every_method_can_be_traced(name):
    layer = {"layer": 1} if name in ("rmu", "adaptive_rmu") else {}
    step = abstract({"data": 1}, method={"name": name, **layer})
    with jax.set_mesh(step.mesh):
        state, metrics = jax.eval_shape(
            step.step, step.state, step.frozen, step.batches, step.reference
        )
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, step.state)
    assert {"loss", "gradient_norm", "skipped"} <= set(metrics)


def test_a_step_counts_its_real_tokens():
    step = abstract({"data": 1, "fsdp": 1})
    assert (step.tokens, step.labelled) == (64 * 128, 64 * 48)


def test_reference_columns_lie_by_rows_and_the_head_like_the_embedding():
    step = abstract({"data": 2, "fsdp": 4}, method={"name": "graddiff", "retain": "kl"})
    compared = step.reference["retain"]
    assert compared.hidden.shape[0] == 8
    assert compared.hidden.sharding.shard_shape(compared.hidden.shape)[0] == 1
    assert compared.head.weight.sharding.shard_shape(compared.head.weight.shape) == (4096, 64)


@pytest.mark.slow
def test_adapters_keep_no_more_for_the_backward_pass_than_weights():
    """A projection is kept whole, not the product of the weight beside that of the adapter."""
    whole = abstract({"data": 1, "fsdp": 1}).compiled().memory_analysis().temp_size_in_bytes
    adapters = abstract({"data": 1, "fsdp": 1}, lora={"rank": 4}).compiled().memory_analysis()
    assert adapters.temp_size_in_bytes < 1.3 * whole  # 1.55 with both
