"""What the compiled programs hold, and that they divide over devices without changing."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxforget_kernels import blocks, linear_cross_entropy, linear_kl
from jaxforget_kernels.cross_entropy import reference

ROWS, LENGTH, WIDTH, VOCAB, BLOCK = 8, 21, 6, 1016, 4


def arguments():
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, start = (jax.random.normal(k, (ROWS, LENGTH, WIDTH)) for k in keys[:2])
    weight, old = (jax.random.normal(k, (VOCAB, WIDTH)) for k in keys[2:4])
    return hidden, weight, start, old, jax.random.randint(keys[4], (ROWS, LENGTH), 0, VOCAB)


def losses(block=BLOCK):
    weights = jnp.linspace(-1.0, 1.0, ROWS * LENGTH).reshape(ROWS, LENGTH)

    def cross_entropy(hidden, weight, start, old, targets):
        logp, stats = linear_cross_entropy(hidden, weight, targets, stats=True, block=block)
        return (weights * logp).sum(), stats

    def kl(hidden, weight, start, old, targets):
        return (weights * linear_kl(start, old, hidden, weight, block=block)).sum(), ()

    return {"cross_entropy": cross_entropy, "kl": kl}


def largest_vocabulary_array(program):
    """Elements of the largest array in the text that has the vocabulary as an axis but not D."""
    shapes = re.findall(r"[a-z]+\d+\[([\d,]+)\]", program)
    sizes = [tuple(map(int, shape.split(","))) for shape in shapes]
    return max((math.prod(s) for s in sizes if VOCAB in s and WIDTH not in s), default=0)


@pytest.mark.parametrize("name", ["cross_entropy", "kl"])
def test_blocks_leave_no_array_of_all_positions_by_the_vocabulary(name):
    step = jax.jit(jax.value_and_grad(losses()[name], (0, 1), has_aux=True))
    program = step.lower(*arguments()).compile().as_text()
    assert largest_vocabulary_array(program) == ROWS * BLOCK * VOCAB


def test_the_plain_form_does_hold_that_array_so_the_search_would_see_it():
    def plain(hidden, weight, start, old, targets):
        return reference.linear_cross_entropy(hidden, weight, targets).sum()

    program = jax.jit(jax.grad(plain, (0, 1))).lower(*arguments()).compile().as_text()
    assert largest_vocabulary_array(program) >= ROWS * LENGTH * VOCAB


@pytest.mark.parametrize("name", ["cross_entropy", "kl"])
def test_gradients_nobody_asks_for_cost_no_product(name):
    def products(wrt):
        step = jax.jit(jax.grad(lambda *a: losses()[name](*a)[0], wrt))
        return step.lower(*arguments()).compile().as_text().count(" dot(")

    forward_and_logits = 2 if name == "cross_entropy" else 4
    assert products((0, 1)) == forward_and_logits + 2
    assert products((0,)) == forward_and_logits + 1


@pytest.mark.parametrize("block", [BLOCK, LENGTH])
@pytest.mark.parametrize("name", ["cross_entropy", "kl"])
@pytest.mark.parametrize("sizes", [(8, 1), (1, 8), (2, 4)])
def test_rows_and_vocabulary_divide_over_devices_without_change(name, sizes, block):
    mesh = jax.make_mesh(sizes, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    step = jax.jit(jax.value_and_grad(losses(block)[name], (0, 1), has_aux=True))
    single = step(*arguments())
    rows, vocab = NamedSharding(mesh, P("data")), NamedSharding(mesh, P("tensor"))
    placed = jax.device_put(arguments(), (rows, vocab, rows, vocab, rows))
    divided = step(*placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), divided, single
    )


@pytest.mark.parametrize("name", ["cross_entropy", "kl"])
def test_a_divided_vocabulary_is_never_gathered(name):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rows, vocab = NamedSharding(mesh, P("data")), NamedSharding(mesh, P("tensor"))
    placed = jax.device_put(arguments(), (rows, vocab, rows, vocab, rows))
    step = jax.jit(jax.value_and_grad(losses()[name], (0, 1), has_aux=True))
    with jax.set_mesh(mesh):
        program = step.lower(*placed).compile().as_text()
    assert f"[{VOCAB}," not in program and f",{VOCAB}]" not in program
    assert f"[{VOCAB // 4},{WIDTH}]" in program


def test_block_length_stays_in_the_budget_and_even():
    assert blocks.block_length(8, 64, 1000, None) == 64
    longest, whole = (most // (8 * 49152) for most in (blocks.CPU_BUDGET, blocks.CPU_WHOLE))
    assert blocks.block_length(8, whole, 49152, None) == whole
    count = -(-(whole + 1) // longest)
    assert blocks.block_length(8, whole + 1, 49152, None) == -(-(whole + 1) // count) <= longest
    assert blocks.block_length(4096, 9, 2**20, None) == 1
    assert blocks.block_length(1, 0, 10, None) == 1 and blocks.block_length(0, 5, 10, None) == 5
    assert blocks.block_length(1, 5, 10, 64) == 5


def test_the_budget_is_per_device_of_the_mesh():
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    single = blocks.block_length(8, 8192, 2**14, None)
    lengths = []

    def note(rows):
        lengths.append(blocks.block_length(8, 8192, 2**14, None))
        return rows

    with jax.set_mesh(mesh):
        jax.jit(note)(jnp.ones(8))
        jax.jit(jax.shard_map(note, in_specs=P("data"), out_specs=P("data")))(jnp.ones(8))
    assert single == 128 and lengths == [8 * single, single]
