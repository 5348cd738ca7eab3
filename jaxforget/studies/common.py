"""What every study does around its work: the run directory, the model, the data, the results."""

import contextlib
import hashlib
import json
import logging
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxforget import config as configs
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet, check_vocabulary
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.tokenise import tokenise_cached
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.processes import first_before_others, on_first
from jaxforget.engine.run_dir import RunDirectory, lock, open_run, write_config
from jaxforget.engine.runtime import (
    give_back_if_large,
    keep_freed_memory,
    processor,
    use_compile_cache,
)
from jaxforget.engine.train import Progress
from jaxforget.engine.tree import Params
from jaxforget.models import Compute
from jaxforget.models.hf import read_config
from jaxforget.models.language_model import LanguageModel, from_scratch, load
from jaxforget.models.tokenizer import read_tokenizer

log = logging.getLogger(__name__)

LONGEST = 512  # tokens of an example where nothing is configured
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
    keep_freed_memory()
    run = RunDirectory(pathlib.Path(config.run_dir).absolute())
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            open_run(run.path, resume=getattr(config, "resume", "auto"))
            stack.enter_context(lock(run))
            identity = json.dumps(configs.identity(config))
            write_config(run, configs.to_yaml(config), identity, configs.defaults(config))
            stack.enter_context(_logged(run))

        on_first(claim)
        use_compile_cache(run.cache / "programs")
        yield run


@contextlib.contextmanager
def _logged(run: RunDirectory) -> Iterator[None]:
    handler = logging.FileHandler(run.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("jaxforget")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


def load_model(config: Any) -> LanguageModel:
    """The starting model with the configured dtypes, and a tokenizer.

    Raises:
      UserError: see `load`; no tokenizer; `max_length` above the model's context.
    """
    train = getattr(config, "train", None)
    compute = Compute(
        dtype=train.compute if train else config.compute, remat=train.remat if train else "none"
    )
    if getattr(config, "initialise", "pretrained") == "random":
        folder = pathlib.Path(config.model).expanduser()
        hf_config, tokenizer = read_config(folder), read_tokenizer(folder)
        try:
            lm = from_scratch(hf_config, tokenizer, config.train.seed, compute)
        except UserError as error:
            raise UserError(f"model: {folder}: {error}") from None
    else:
        lm = load(config.model, dtype=config.dtype, compute=compute, mesh=_shared_mesh(config))
    if lm.tokenizer is None:
        raise UserError(f"model: {config.model} has no tokenizer; add its tokenizer.json")
    longest(config, lm)
    give_back_if_large(lm.params)
    return lm


def _shared_mesh(config: Any) -> Mesh | None:
    """Where weights lie from the start, so that none of several devices ever holds all of them.

    Several processes load by themselves: what only the first computes needs no other's devices.
    """
    wanted = getattr(config, "mesh", None)
    if wanted is None or jax.process_count() > 1:
        return None
    mesh = meshes.make_mesh(wanted)
    return mesh if mesh.size > 1 else None


def longest(config: Any, lm: LanguageModel) -> int:
    """Most tokens of one example, as configured or as the model allows.

    Raises:
      UserError: more are configured than the model's context holds.
    """
    context = lm.config.max_positions
    if config.max_length is None:
        return min(LONGEST, context)
    if config.max_length > context:
        raise UserError(
            f"max_length: {config.max_length} is more than the model's context "
            f"(max_position_embeddings); allowed: at most {context}"
        )
    return config.max_length


def load_set(
    source: DataSource, lm: LanguageModel, config: Any, run: RunDirectory
) -> tuple[list[Record], TokenisedSet]:
    """Records of a source and their tokens, checked against the model's vocabulary."""
    records = load_records(source)
    return records, tokens_of(records, lm, config, run)


def tokens_of(
    records: Sequence[Record], lm: LanguageModel, config: Any, run: RunDirectory
) -> TokenisedSet:
    """Tokens of records, cached in the run directory and checked against the vocabulary."""
    with first_before_others():
        tokenised = tokenise_cached(
            records,
            lm.tokenizer,
            config.template,
            max_length=longest(config, lm),
            cache_dir=run.cache,
        )
    check_vocabulary(tokenised, lm.config.vocab_size)
    return tokenised


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
            "processor": processor(),
        },
    }


def config_digest(config: Any) -> str:
    """SHA-256 of the resolved configuration but its `run_dir`: a run may be moved."""
    tree = {key: value for key, value in configs.as_tree(config).items() if key != "run_dir"}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


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
