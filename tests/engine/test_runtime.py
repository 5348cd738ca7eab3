"""What is asked of the machine holds, and can be forbidden."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import jax, jax.numpy as jnp
from jaxforget.engine.runtime import give_back_freed_memory, keep_freed_memory
jax.config.update("jax_platforms", "cpu")
kept = keep_freed_memory()
if "large" in sys.argv:
    assert give_back_freed_memory() == kept
program = jax.jit(lambda x: x + 1.0)
x = jnp.zeros((4096, 4096))
for _ in range(20):
    program(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    program(x).block_until_ready()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_programs_free_is_kept_unless_forbidden():
    """Pages of a 64 MiB result are touched anew at every call, or only at the first."""
    found = {}
    for setting, size in (("1", "small"), ("1", "large"), ("0", "small"), ("0", "large")):
        environment = {**os.environ, "JAXFORGET_KEEP_MEMORY": setting}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, size],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        kept, faults = done.stdout.split()
        assert kept == str(setting == "1")
        found[setting, size] = int(faults)
    kept = found.pop(("1", "small"))
    assert kept < 0.5 * min(found.values())


IMPORTS = """
import importlib, pkgutil
import jax
import jaxforget
for module in pkgutil.walk_packages(jaxforget.__path__, "jaxforget."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 3)  # refused once a device has been touched
print(jax.device_count())
"""


def test_importing_touches_no_device():
    """A process of several joins the others after its imports and before its devices."""
    environment = {key: os.environ[key] for key in os.environ if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["3"], done.stderr


CACHED = """
import sys
import jax, jax.numpy as jnp
from jaxforget.engine.runtime import compiler_options, use_compile_cache
jax.config.update("jax_platforms", "cpu")
use_compile_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
# on CPUs with AMX this softmax becomes a call of oneDNN, which the cache cannot keep
program = jax.jit(lambda x: jax.nn.softmax(x @ x), compiler_options=compiler_options())
print(float(program(jnp.ones((256, 256))).sum()))
"""


def test_programs_that_the_cache_cannot_keep_still_run_without_a_warning(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", CACHED, str(tmp_path)],
        env={**environment, "JAXFORGET_ONEDNN": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(256, abs=1e-3)
