"""Settings of every test: eight virtual devices, strict shapes, cached compilations."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# tests compile many programs and run each for moments: LLVM's optimisations do not pay
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"),
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# a first call compiles, and how long that takes says nothing
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

DATA = pathlib.Path(os.environ.get("JAXFORGET_DATA", "../shared/data"))


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module():
    """Frees compiled programs: each holds some forty mappings, of which Linux gives 65,530."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def shared_data():
    """Folder of real data files; the test is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"real data not present: {DATA} (set JAXFORGET_DATA)")
    return DATA
