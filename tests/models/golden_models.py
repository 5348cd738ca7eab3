"""The golden checkpoints of tests/golden/models, read once, and rows of tokens to score."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget.engine.types import TokenBatch
from jaxforget.models import hf
from jaxforget.models.config import DecoderConfig

FOLDER = pathlib.Path(__file__).parent.parent / "golden" / "models"
CASES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


@functools.cache
def load(case):
    """(architecture, parameters as jax arrays, expected arrays) of one golden checkpoint."""
    config, params = hf.read_hf(FOLDER / case)
    expected = dict(np.load(FOLDER / case / "expected.npz"))
    return DecoderConfig.from_hf(config), jax.tree.map(jnp.asarray, params), expected


def rows(*packed, length, max_targets=None, first_target=0):
    """Rows of a batch; each row is a list of token sequences packed one behind the other.

    Every position of a sequence but its last predicts the next token; those from `first_target`
    on count.
    """
    width = max(len(row) for row in packed)
    columns = {
        name: np.zeros((len(packed), length), np.int32)
        for name in ("tokens", "targets", "segments", "positions", "mask")
    }
    example = np.full((len(packed), width), -1, np.int32)
    for index, row in enumerate(packed):
        start = 0
        for segment, sequence in enumerate(row):
            inputs, here = sequence[:-1], slice(start, start + len(sequence) - 1)
            columns["tokens"][index, here] = inputs
            columns["targets"][index, here] = sequence[1:]
            columns["segments"][index, here] = segment + 1
            columns["positions"][index, here] = np.arange(len(inputs))
            columns["mask"][index, here] = np.arange(len(inputs)) >= first_target
            example[index, segment] = segment
            start = here.stop
    columns["mask"] = columns["mask"].astype(np.float32)
    arrays = {name: jnp.asarray(column) for name, column in columns.items()}
    return TokenBatch(**arrays, example=jnp.asarray(example), max_targets=max_targets)
