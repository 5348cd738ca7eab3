"""Looking into every layer: one packed pass over a set, values by example."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxforget.data.pack import pack_all
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.mesh import put_rows
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params
from jaxforget.evals.attacks.attack import AuditData
from jaxforget.evals.teacher_forced import packed_length

type Read = Callable[..., Array]
"""`models.lens.layer_logp` or `layer_states`: (params, batch, cfg, compute) -> `[n, B, S, ..]`."""


def by_example(
    read: Read, lm: Any, params: Params, tokenised: TokenisedSet, data: AuditData
) -> np.ndarray:
    """What every layer holds of every example.

    Args:
      read: see `Read`.
      lm: a `LanguageModel`.
      params: looked into instead of the model's own.
      tokenised: the examples.
      data: for batch size and mesh.
    Returns:
      float32 `[examples, layers, ..]`, in order of the set.
    """
    found: np.ndarray | None = None
    run = _compiled(read, lm.config, lm.compute)
    with jax.set_mesh(data.mesh):
        for batch in pack_all(tokenised, rows=data.batch_size, length=packed_length(tokenised)):
            values = np.moveaxis(np.asarray(run(params, put_rows(batch, data.mesh))), 0, 2)
            there = np.asarray(batch.example) >= 0
            if found is None:
                found = np.zeros((len(tokenised), *values.shape[2:]), values.dtype)
            found[np.asarray(batch.example)[there]] = values[there]
    assert found is not None
    return found


@functools.lru_cache(maxsize=8)
def _compiled(read: Read, cfg: Any, compute: Any) -> Callable[..., Any]:
    def run(params: Params, batch: Any) -> Array:
        return read(params, batch, cfg, compute)

    return jax.jit(run, compiler_options=compiler_options())


def one_label(tokenised: TokenisedSet, which: int) -> TokenisedSet:
    """The set with one labelled target an example.

    Args:
      tokenised: the set, without columns.
      which: 0: each example's first labelled target, whose slot has read the prompt; -1: its last.
    """
    labelled = np.flatnonzero(tokenised.mask)
    ends = tokenised.label_offsets[1:] - 1 if which else tokenised.label_offsets[:-1]
    mask = np.zeros_like(tokenised.mask)
    mask[labelled[ends]] = True
    return dataclasses.replace(tokenised, mask=mask, columns={})
