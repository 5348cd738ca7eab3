"""Keeping what single training steps did to the weights, for amnesiac unlearning."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np

from jaxforget.data.batches import PairedBatches
from jaxforget.data.sets import example_ids
from jaxforget.edits import record_updates
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.engine.types import State


def recording(
    folder: pathlib.Path,
    batches: PairedBatches,
    watched: frozenset[int],
    start: int,
    params: Params,
    frozen: Params,
) -> Callable[[int, State], float]:
    """A function to be called after every step, with the steps taken and the state.

    Args:
      folder: see `record_updates`.
      batches: of one role.
      watched: ids of the examples whose steps are kept, see `example_ids`.
      start: steps already taken.
      params: before the first step to come.
      frozen: the leaves that are not trained, with the scales of adapters.
    Raises:
      UserError: several processes, or data that holds none of the watched examples.
    """
    if jax.process_count() > 1:
        raise UserError("record_updates: runs of several processes are not recorded")
    ((role, tokenised),) = batches.sets.items()
    ids = example_ids(tokenised)
    if not watched & set(ids.tolist()):
        raise UserError("record_updates: no row of this set is among the data")
    record = record_updates(folder, watched=watched, scales=jax.device_get(_scales(frozen)))

    def touched(step: int) -> np.ndarray | None:
        mine = ids[batches.examples(step)[role]]
        return mine if watched & set(mine.tolist()) else None

    before: Params = jax.device_get(params) if touched(start) is not None else {}

    def after_step(done: int, state: State) -> float:
        nonlocal before
        mine, coming = touched(done - 1), touched(done)
        now: Params = {}
        if mine is not None or coming is not None:
            now = jax.device_get(state.params)
        if mine is not None:
            record(done - 1, before, now, mine)
        before = now
        return 0.0  # recording belongs to the training

    return after_step


def _scales(frozen: Params) -> Params:
    kept = {path: leaf for path, leaf in flatten(frozen).items() if path.endswith("/lora_scale")}
    return unflatten(kept)
