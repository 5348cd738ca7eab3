"""What every study does around its work: the run directory, the model, the data, the results."""

import contextlib
import hashlib
import json
import logging
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

from jaxforget import config as configs
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet, check_vocabulary
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.tokenise import tokenise_cached
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import RunDirectory, lock, open_run, write_config
from jaxforget.engine.runtime import use_compile_cache
from jaxforget.engine.train import Progress
from jaxforget.engine.tree import Params
from jaxforget.models import Compute
from jaxforget.models.hf import read_config
from jaxforget.models.language_model import LanguageModel, from_scratch, load

log = logging.getLogger(__name__)

PACKAGES = ("jaxforget", "jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


@dataclass(frozen=True)
class Events:
    """What a study tells whoever watches; every field may be left as it is.

    Attributes:
      stage: called with a short sentence when a new stage begins.
      progress: called at every logged training step.
      counted: called with (what, done, total) during long passes.
    """

    stage: Callable[[str], None] = lambda _: None
    progress: Callable[[Progress], None] = lambda _: None
    counted: Callable[[str, int, int], None] = lambda *_: None


SILENT = Events()


@dataclass(frozen=True)
class Result:
    """What a study returns.

    Attributes:
      params: of the final model, merged (no adapters); None where nothing was trained.
      metrics: final metrics by name.
      run_dir: everything written.
    """

    params: Params | None
    metrics: Mapping[str, Any]
    run_dir: RunDirectory


@contextlib.contextmanager
def opened(config: Any) -> Iterator[RunDirectory]:
    """The run directory, locked, its configuration checked and recorded, its log attached."""
    run = open_run(config.run_dir, resume=getattr(config, "resume", "auto"))
    with lock(run):
        write_config(run, configs.to_yaml(config), json.dumps(configs.identity(config)))
        use_compile_cache(run.cache / "programs")
        handler = logging.FileHandler(run.log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        package = logging.getLogger("jaxforget")
        level = package.level
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            yield run
        finally:
            package.removeHandler(handler)
            package.setLevel(level)
            handler.close()


def load_model(config: Any) -> LanguageModel:
    """The starting model with the configured dtypes."""
    train = getattr(config, "train", None)
    compute = Compute(
        dtype=train.compute if train else config.compute, remat=train.remat if train else "none"
    )
    if getattr(config, "initialise", "pretrained") == "random":
        return _from_scratch(pathlib.Path(config.model), config.train.seed, compute)
    return load(config.model, dtype=config.dtype, compute=compute)


def _from_scratch(folder: pathlib.Path, seed: int, compute: Compute) -> LanguageModel:
    """Random weights for the config.json and tokenizer of a folder."""
    from transformers import AutoTokenizer

    hf_config = read_config(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model: no tokenizer can be read from {folder}: {error}") from error
    return from_scratch(hf_config, tokenizer, seed, compute)


def load_set(
    source: DataSource, lm: LanguageModel, config: Any, run: RunDirectory
) -> tuple[list[Record], TokenisedSet]:
    """Records of a source and their tokens, checked against the model's vocabulary."""
    records = load_records(source)
    tokenised = tokenise_cached(
        records,
        lm.tokenizer,
        config.template,
        max_length=config.max_length,
        cache_dir=run.cache,
    )
    check_vocabulary(tokenised, lm.config.vocab_size)
    return records, tokenised


def environment() -> dict[str, Any]:
    """Versions and devices, for results and reports."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    devices = jax.devices()
    return {
        "versions": versions,
        "devices": {
            "backend": jax.default_backend(),
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
    }


def config_digest(config: Any) -> str:
    """SHA-256 of the resolved configuration."""
    return hashlib.sha256(configs.to_yaml(config).encode()).hexdigest()


def peak_bytes() -> int | None:
    """Most memory used so far: the first device's, or on CPU the process's resident set."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if platform.system() == "Darwin" else 1024)


def to_host(params: Params) -> Params:
    """Whole arrays on this host, gathered from every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, params)
    from jax.experimental import multihost_utils

    return jax.tree.map(
        lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), params
    )


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def seconds(self) -> float:
        """Elapsed, rounded to milliseconds."""
        return round(time.perf_counter() - self._begin, 3)
