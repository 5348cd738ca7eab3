"""Compiler options and caches for the machine at hand, in one place."""

import ctypes
import functools
import logging
import os
import pathlib
import platform
import re
import warnings
from typing import Any

import jax

from jaxforget.engine.errors import UserError

log = logging.getLogger(__name__)

# see docs/performance.md for when they pay
_CPU_ONEDNN = {"xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_custom_call": True}

_VECTORS = {"amx_bf16": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}  # the widest first

# M_MMAP_MAX: nothing is mapped by itself; M_TRIM_THRESHOLD: the end of the heap is never given
# back; M_TOP_PAD: bytes that it grows by
_KEEP = {-4: 0, -1: -1, -2: 2**26}
_GIVING: list[bool] = []  # what `give_back_freed_memory` answered
_GIVE_BACK = {-4: 2**16, -1: 2**17, -2: 2**17, -3: 2**17}  # glibc's own, and its M_MMAP_THRESHOLD
# M_ARENA_MAX: threads share the main heap; one of their own ends at 64 MiB and is given back
_ONE_ARENA = (-8, 1)


@functools.cache
def compiler_options() -> dict[str, bool] | None:
    """Options for `jax.jit(compiler_options=...)`; None where the backend's defaults are best.

    `JAXFORGET_ONEDNN=1` asks XLA for oneDNN matrix products on CPUs with AMX: steps of models some
    500 wide take a fifth less time, those of narrow ones in float32 up to three times more, and
    programs with such products cannot be kept in the compilation cache (JAX's warning at each is
    silenced). Experimental options may vanish with a new XLA: a tiny compilation probes them.
    """
    if jax.default_backend() != "cpu" or os.environ.get("JAXFORGET_ONEDNN", "0") != "1":
        return None
    if not _cpu_has_amx():
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_ONEDNN)(0.0)
    except Exception as error:  # any refusal means: do without
        log.info("XLA refused the oneDNN options (%s); using its defaults", error)
        return None
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    return _CPU_ONEDNN


def _cpu_has_amx() -> bool:
    return "amx_bf16" in _cpuinfo()  # with AVX-512 alone they are slower than XLA's own products


def _cpuinfo() -> str:
    try:
        return pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def processor() -> str:
    """The host's processor, its cores and widest vectors, e.g. "AMD EPYC, 2 cores, AVX2"."""
    told = _cpuinfo()
    named = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    name = named[1].strip() if named else platform.processor() or platform.machine()
    widest = next((label for flag, label in _VECTORS.items() if flag in told), None)
    return ", ".join(filter(None, (name, f"{os.cpu_count()} cores", widest)))


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that a program on the CPU frees, for the next one.

    XLA asks the C library for a program's buffers anew at every call; glibc gives large ones back
    to the kernel at once, which clears every page of them again. Small models then take their
    steps in two thirds of the time (docs/performance.md), for about a tenth more resident memory.
    It holds for the whole process, so that studies ask for it and library functions do not; in
    full only where it is asked for before JAX has started its threads.
    `JAXFORGET_KEEP_MEMORY=0` forbids it.

    Returns:
      Whether it was done: only on CPUs, and where the C library is glibc.
    """
    if os.environ.get("JAXFORGET_KEEP_MEMORY", "1") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    mallopt(*_ONE_ARENA)  # before the backend's threads exist, thus before it is known
    if jax.default_backend() != "cpu":
        return False
    return all(mallopt(option, value) == 1 for option, value in _KEEP.items())


LARGE = 2**28
"""Bytes of weights from which on memory matters more than the clearing of pages."""


def give_back_freed_memory() -> bool:
    """Undo `keep_freed_memory`, and give back what is kept.

    Large models: what a program frees is in pieces that the next one's buffers do not fit into, so
    that the heap of a process that keeps them grows to half as much again; and next to their
    arithmetic the clearing of pages is nothing.

    Returns:
      Whether it was done: see `keep_freed_memory`.
    """
    if not keep_freed_memory():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    _GIVING.append(all(mallopt(option, value) == 1 for option, value in _GIVE_BACK.items()))
    trim_freed_memory()
    return _GIVING[-1]


def give_back_if_large(params: Any) -> None:
    """`give_back_freed_memory` where a tree of weights has `LARGE` bytes or more."""
    if sum(leaf.nbytes for leaf in jax.tree.leaves(params)) >= LARGE:
        give_back_freed_memory()


def trim_freed_memory() -> None:
    """Give back what lies free in the heap, once `give_back_freed_memory` was called.

    Compilers, for one, leave some hundred MiB there in small pieces.
    """
    if _GIVING:
        ctypes.CDLL(None).malloc_trim(0)


def use_compile_cache(folder: str | pathlib.Path | None) -> None:
    """Keep compiled programs in `folder` between processes; None leaves JAX's setting alone.

    `JAX_COMPILATION_CACHE_DIR`, where set, wins.
    """
    if folder is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def start_distributed() -> None:
    """Join a multi-process run, before any device is touched.

    Reads `JAX_COORDINATOR_ADDRESS` (host:port), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; on
    clusters that JAX detects by itself set `JAXFORGET_DISTRIBUTED=1`. Otherwise one process.

    Raises:
      UserError: the variables are incomplete or the other processes cannot be reached.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if name in os.environ]
    if jax.distributed.is_initialized():
        return
    if not given:
        if os.environ.get("JAXFORGET_DISTRIBUTED") == "1":
            jax.distributed.initialize()
        return
    missing = [name for name in names if name not in given]
    if missing:
        raise UserError(f"a multi-process run needs {', '.join(names)}; missing: {missing}")
    try:
        jax.distributed.initialize(
            os.environ[names[0]], int(os.environ[names[1]]), int(os.environ[names[2]])
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"cannot join the other processes: {error}") from error
