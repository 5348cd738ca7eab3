"""What the machine can do at best: the limits that benchmarks are compared with."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SIZES = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


def seconds_of(run: Callable[[], Any], *, least: float = 0.5) -> float:
    """Best time of one call, over at least `least` seconds and three calls; compiled before."""
    jax.block_until_ready(run())
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return min(times)


def matmul_flops(dtype: str) -> float:
    """FLOP/s of one large square matrix product on the first device."""
    from jaxforget.engine.runtime import compiler_options

    size = SIZES.get(jax.default_backend(), 4096)
    left = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(lambda a: a @ a, compiler_options=compiler_options())
    return 2 * size**3 / seconds_of(lambda: product(left))


def copy_bytes() -> float:
    """Bytes/s read and written by a sum with a constant over an array larger than any cache."""
    size = 2**26 if jax.default_backend() == "cpu" else 2**29
    array = jnp.zeros(size, jnp.float32)
    add = jax.jit(lambda a: a + 1.0)
    return 2 * array.nbytes / seconds_of(lambda: add(array))
