"""Kernels against the machine: useful FLOPs over a matrix product's, useful bytes over a copy's.

Useful FLOPs are those of the mathematics (a backward pass twice its forward one), without what is
computed anew; useful bytes those that must be read and written once. Beside each stands the plain
form (`reference.py`): how much longer it takes, and how much more memory its program needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

import jaxforget_kernels as kernels
from benchmarks.peak import copy_bytes, matmul_flops, seconds_of
from jaxforget_kernels.cross_entropy import reference as cross_entropy
from jaxforget_kernels.kl import reference as kl
from jaxforget_kernels.project_out import reference as projection
from jaxforget_kernels.threshold_mask import reference as mask

# positions, width, words: of SmolLM2-135M, and on accelerators of Llama-3.2-1B
HEADS = {"cpu": (512, 576, 49152), "gpu": (8192, 2048, 128256), "tpu": (8192, 2048, 128256)}
ENTRIES = {"cpu": 2**23, "gpu": 2**27, "tpu": 2**26}
VECTORS = 4


@dataclass(frozen=True)
class Case:
    """A kernel at one size.

    Attributes:
      name: of the row.
      run, plain: the kernel and its reference form, of the same arguments.
      arguments: arrays.
      flops: useful ones; 0: it is bound by memory.
      moved: useful bytes.
    """

    name: str
    run: Callable[..., Any]
    plain: Callable[..., Any]
    arguments: tuple[Any, ...]
    flops: float
    moved: float = 0.0


def rows(dtype: str) -> list[dict[str, Any]]:
    """One row a kernel: its share of a peak measured in the same call, the plain form's cost."""
    flops, moved = matmul_flops(dtype), copy_bytes()
    return [_row(case, dtype, flops, moved) for case in [*_heads(dtype), *_vectors()]]


def _row(case: Case, dtype: str, flops: float, moved: float) -> dict[str, Any]:
    seconds, memory = _measured(case.run, case.arguments)
    plain, plain_memory = _measured(case.plain, case.arguments)
    share = case.flops / seconds / flops if case.flops else case.moved / seconds / moved
    return {
        "suite": "kernels",
        "kernel": case.name,
        "dtype": dtype if case.flops else "float32",
        "bound by": "products" if case.flops else "memory",
        "of_peak": round(share, 2),
        "plain_over_it": round(plain / seconds, 2),
        "plain_memory_over_it": round(plain_memory / max(memory, 1), 1),
        "ms": round(1e3 * seconds, 2),
        "device": jax.devices()[0].device_kind,
    }


def _measured(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[float, int]:
    """(seconds, bytes of results and temporaries) of a compiled call."""
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    held = memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else 0
    return seconds_of(lambda: program(*arguments)), held


def _heads(dtype: str) -> list[Case]:
    length, width, vocab = HEADS[jax.default_backend()]
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, other = (jax.random.normal(key, (1, length, width), dtype) for key in keys[:2])
    weight = jax.random.normal(keys[2], (vocab, width), dtype) / width**0.5
    targets = jax.random.randint(keys[3], (1, length), 0, vocab)

    def gradient(function: Callable[..., Array]) -> Callable[..., Any]:
        return jax.grad(lambda h, w, *rest: function(h, w, *rest).sum(), argnums=(0, 1))

    def divergence(function: Callable[..., Array]) -> Callable[..., Any]:
        return jax.grad(lambda q, w, p: function(p, w, q, w).sum())

    product = 2.0 * length * width * vocab
    score = (hidden, weight, targets)
    return [
        Case(
            "linear_cross_entropy",
            kernels.linear_cross_entropy,
            cross_entropy.linear_cross_entropy,
            score,
            product,
        ),
        Case(
            "linear_cross_entropy, gradient",
            gradient(kernels.linear_cross_entropy),
            gradient(cross_entropy.linear_cross_entropy),
            score,
            3 * product,
        ),
        Case(
            "linear_kl, gradient of q's states",
            divergence(kernels.linear_kl),
            divergence(kl.linear_kl),
            (hidden, weight, other),
            3 * product,
        ),
    ]


def _vectors() -> list[Case]:
    size = ENTRIES[jax.default_backend()]
    half = (size // 2048, 1024)
    keys = jax.random.split(jax.random.key(1), 4)
    arrays = [jax.random.normal(key, half) for key in keys[:2]]
    basis = [jax.random.normal(key, (VECTORS, *half)) / size**0.5 for key in keys[2:]]
    return [
        Case(
            "project_out, 4 directions",
            kernels.project_out,
            projection.project_out,
            (basis, arrays),
            0.0,
            4.0 * size * (2 * (VECTORS + 1) + 1),  # two passes, one result
        ),
        Case(
            "threshold_mask, a tenth",
            lambda some: kernels.threshold_mask(some, size // 10),
            lambda some: mask.threshold_mask(some, size // 10),
            (arrays,),
            0.0,
            4.0 * size + size,  # one pass and the mask
        ),
    ]
