"""`jaxforget doctor`: what this machine is and what it lacks."""

import importlib.util
import os
import shutil
from typing import Any

import jax

from jaxforget.engine.runtime import compiler_options
from jaxforget.studies.common import environment

_GIB = 2**30


def diagnose() -> tuple[dict[str, Any], list[str]]:
    """(facts by name, warnings a user should read)."""
    facts: dict[str, Any] = {}
    found = environment()
    for name, version in found["versions"].items():
        facts[name] = version
    devices = found["devices"]
    facts["devices"] = f"{devices['count']} x {devices['kind']} ({devices['backend']})"
    facts["processor"], facts["processes"] = devices["processor"], devices["processes"]
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        facts["device memory"] = f"{stats['bytes_limit'] / _GIB:.1f} GiB each"
    facts["host memory"] = f"{_host_memory() / _GIB:.1f} GiB"
    facts["free disk here"] = f"{shutil.disk_usage('.').free / _GIB:.1f} GiB"
    facts["compiler options"] = compiler_options() or "defaults"
    facts["compile cache"] = os.environ.get("JAX_COMPILATION_CACHE_DIR") or "in each run directory"
    return facts, _warnings(devices["backend"])


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _warnings(backend: str) -> list[str]:
    warnings = []
    if backend == "cpu" and shutil.which("nvidia-smi"):
        warnings.append(
            "an NVIDIA GPU is present but JAX uses the CPU: pip install jaxforget[cuda]"
        )
    if backend == "cpu" and os.path.exists("/dev/accel0"):
        warnings.append("a TPU is present but JAX uses the CPU: pip install jaxforget[tpu]")
    if shutil.disk_usage(".").free < 5 * _GIB:
        warnings.append("less than 5 GiB of disk is free here; checkpoints may not fit")
    if importlib.util.find_spec("tensorboardX") is None:
        warnings.append("no TensorBoard events: pip install jaxforget[tensorboard]")
    return warnings
