"""What the steps of a task see: its own examples, and what is kept of the tasks before."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.data import memory as memories
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.stream import TRAIN, Draws, StreamBatches, chosen, planned
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.studies.stored import Stored, previous_answers, read_stored
from jaxforget.studies.streams.stream import Stream


def batches_of(stream: Stream, task: int) -> tuple[StreamBatches, Mapping[str, Any]]:
    """Batches of a task, and the heads of the models that its references are of."""
    sets, heads = _sets(stream, task)
    draws = _draws(stream, task, sets)
    multiple = meshes.row_shards(stream.mesh) * stream.config.train.accumulate
    steps = stream.tasks[task].steps if task < len(stream.tasks) else stream.rehearsal_steps
    (found,) = planned(
        sets, [(draws, steps)], length=stream.config.train.row_length, row_multiple=multiple
    )
    return found, heads


def _sets(stream: Stream, task: int) -> tuple[dict[str, TokenisedSet], dict[str, Any]]:
    sets: dict[str, TokenisedSet] = {TRAIN: stream.tokenised}
    heads: dict[str, Any] = {}
    references = stream.strategy.references(min(task, len(stream.tasks) - 1))
    kept = kept_before(stream, task)
    for role in _roles(stream, task):
        if role == TRAIN:
            continue
        if role.startswith("memory_"):
            sets[role] = kept[int(role.removeprefix("memory_"))].of(stream.tokenised)
        else:
            stored = role in references and references[role][0] == "stored"
            sets[role] = _together(kept, stream.tokenised, stored)
    if TRAIN in references and references[TRAIN][0] == "previous":
        if stream.config.memory.share:
            raise UserError(
                f"strategy: {stream.strategy.name} caches the previous model's answers to the "
                'new task alone; set its teacher to "live" or memory.share to 0'
            )
        own = chosen(stream.tokenised, stream.tasks[task].ids)
        sets[TRAIN], heads[TRAIN] = previous_answers(stream.folder(task) / "previous.npz", own)
    return sets, heads


def _roles(stream: Stream, task: int) -> tuple[str, ...]:
    if task < len(stream.tasks):
        return stream.strategy.roles(task)
    assert stream.strategy.rehearsal is not None
    terms = stream.strategy.rehearsal.terms.values()
    return tuple(dict.fromkeys(role for term in terms for role in term.part.roles))


def _draws(stream: Stream, task: int, sets: Mapping[str, TokenisedSet]) -> Draws:
    settings, memory = stream.config.train, stream.config.memory
    count = memory.batch_size or settings.batch_size
    roles = {r: (np.arange(len(s)), count) for r, s in sets.items() if r != TRAIN}
    own = stream.tasks[min(task, len(stream.tasks) - 1)].ids
    if sets[TRAIN] is not stream.tokenised:  # a set of the task alone
        own = np.arange(len(own))
    ids = [each.ids for each in kept_before(stream, task)] if memory.share else []
    old = np.concatenate([np.zeros(0, np.int64), *ids])
    return Draws(own, old, settings.batch_size, (settings.seed, task), memory.share, roles)


def kept_before(stream: Stream, task: int) -> list[Stored]:
    """What is kept of the tasks before; of the first one itself where there is none yet."""
    done = min(task, len(stream.tasks))
    if not done:
        order = memories.order_of(stream.tasks[0].ids, (stream.config.train.seed, 0))
        return [Stored(order[0][: stream.config.memory.size], order[1], {})]
    ended = [read_stored(stream.folder(each) / "memory.npz") for each in range(done)]
    orders = [(each.ids, each.keys) for each in ended]
    ids = memories.kept(orders, stream.config.memory.size, stream.config.memory.kind)
    return [each.only(some) for each, some in zip(ended, ids, strict=True) if len(some)]


def identity_of(stream: Stream, task: int) -> str:
    """Of the data, the seed and everything else that decides what this task's steps see."""
    parts = [stream.tokenised.fingerprint, str(stream.config.train.seed), str(task)]
    parts += [str((each.name, each.steps, len(each.ids))) for each in stream.tasks]
    return " ".join(parts)


def _together(kept: Sequence[Stored], tokenised: TokenisedSet, with_answers: bool) -> TokenisedSet:
    """All that is kept as one set, with what was answered where a term compares with it."""
    ids = np.concatenate([each.ids for each in kept])
    whole = chosen(tokenised, ids)
    if not with_answers:
        return whole
    names = kept[0].columns
    return whole.with_columns(
        **{name: np.concatenate([each.columns[name] for each in kept]) for name in names}
    )
