"""What the steps of a task see: its own examples, and what is kept of the tasks before."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.data import memory as memories
from jaxforget.data.layout import Shape
from jaxforget.data.rehearsal import counts, rehearsed, shares
from jaxforget.data.sets import TokenisedSet, fingerprint_of
from jaxforget.data.stream import TRAIN, Draws, StreamBatches, chosen, planned, replayed
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.studies.stored import Stored, previous_answers, read_stored
from jaxforget.studies.streams.stream import Stream

OF_TASK = "memory_"
"""Begins roles of a single finished task's examples."""


def batches_of(
    stream: Stream, task: int, shared: Mapping[str, Shape] | None = None
) -> tuple[StreamBatches, Mapping[str, Any]]:
    """Batches of a task, and the heads of the models that its references are of.

    Args:
      stream: see `Stream`.
      task: from 0; their number: the rehearsal after the last.
      shared: of `shared_shapes`; None: the least shapes that fit this task.
    """
    kept = kept_before(stream, task)
    sets, heads = _sets(stream, task, [each for _, each in kept])
    steps = stream.tasks[task].steps if task < len(stream.tasks) else stream.rehearsal_steps
    draws = _draws(stream, task, sets, kept, steps)
    multiple = meshes.row_shards(stream.mesh) * stream.config.train.accumulate
    length = stream.config.train.row_length
    (found,) = planned(sets, [(draws, steps)], length=length, row_multiple=multiple, shared=shared)
    return found, heads


def shared_shapes(stream: Stream) -> Mapping[str, Shape]:
    """Shapes that suit most tasks' batches, so that few programs are compiled.

    What will be kept of a task is not known before its end; here it is as many of its examples,
    drawn at random. There are none where there is one task only.
    """
    if len(stream.tasks) == 1:
        return {}
    roles = dict.fromkeys(r for task in range(len(stream.tasks)) for r in _roles(stream, task))
    sets = {role: stream.tokenised for role in (TRAIN, *roles)}
    memory, settings = stream.config.memory, stream.config.train
    count = memory.batch_size or settings.batch_size
    tasks = []
    for number, task in enumerate(stream.tasks):
        ended = [
            memories.order_of(each.ids, (settings.seed, place))[0][: memory.size]
            for place, each in enumerate(stream.tasks[:number] or stream.tasks[:1])
        ]
        groups = {
            role: ended[int(role.removeprefix(OF_TASK))]
            if role.startswith(OF_TASK)
            else np.concatenate(ended)
            for role in _roles(stream, number)
            if role != TRAIN
        }
        draws = Draws(
            task.ids,
            np.concatenate(ended),
            settings.batch_size,
            (settings.seed, number),
            memory.share,
            {role: (ids, count) for role, ids in groups.items()},
            views=stream.config.views,
            shuffled=task.shuffled,
        )
        tasks.append((draws, task.steps))
    multiple = meshes.row_shards(stream.mesh) * settings.accumulate
    return planned(sets, tasks, length=settings.row_length, row_multiple=multiple)[0].shapes


def _sets(
    stream: Stream, task: int, kept: Sequence[Stored]
) -> tuple[dict[str, TokenisedSet], dict[str, Any]]:
    sets: dict[str, TokenisedSet] = {TRAIN: stream.tokenised}
    heads: dict[str, Any] = {}
    references = stream.strategy.references(min(task, len(stream.tasks) - 1))
    for role in _roles(stream, task):
        if role == TRAIN:
            continue
        if role.startswith(OF_TASK):
            sets[role] = kept[int(role.removeprefix(OF_TASK))].of(stream.tokenised)
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


def _draws(
    stream: Stream,
    task: int,
    sets: Mapping[str, TokenisedSet],
    kept: Sequence[tuple[int, Stored]],
    steps: int,
) -> Draws:
    settings, memory = stream.config.train, stream.config.memory
    now = stream.tasks[min(task, len(stream.tasks) - 1)]
    own = now.ids
    if sets[TRAIN] is not stream.tokenised:  # a set of the task alone
        own = np.arange(len(own))
    count = memory.batch_size or settings.batch_size
    roles = {role: (np.arange(len(s)), count) for role, s in sets.items() if role != TRAIN}
    old = [each.ids for _, each in kept] if memory.share else []
    mixed, in_turn = np.concatenate([np.zeros(0, np.int64), *old]), False
    if memory.rehearsal.law != "examples":
        mixed, roles = _in_turn(stream, task, kept, steps, roles)
        in_turn = True
    return Draws(
        own,
        mixed,
        settings.batch_size,
        (settings.seed, task),
        memory.share,
        roles,
        views=stream.config.views,
        shuffled=now.shuffled,
        in_turn=in_turn,
    )


def _in_turn(
    stream: Stream,
    task: int,
    kept: Sequence[tuple[int, Stored]],
    steps: int,
    roles: Mapping[str, tuple[np.ndarray, int]],
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, int]]]:
    """All that a task replays, mixed in and in roles of its own, divided by the configured law."""
    settings, memory = stream.config.train, stream.config.memory
    ages, cuts = [age for age, _ in kept], np.cumsum([len(each.ids) for _, each in kept])
    seed = (settings.seed, task)
    total = replayed(steps, settings.batch_size, memory.share)[0]
    mixed = _by_age(stream, [each.ids for _, each in kept], ages, total, (*seed, 1))
    found = {}
    for place, (role, (ids, count)) in enumerate(roles.items(), 2):
        one = role.startswith(OF_TASK)  # examples of a single task
        groups = [ids] if one else np.split(ids, cuts[:-1])
        turn = _by_age(stream, groups, [1] if one else ages, steps * count, (*seed, place))
        found[role] = (turn, count)
    return mixed, found


def _by_age(
    stream: Stream,
    groups: Sequence[np.ndarray],
    ages: Sequence[int],
    total: int,
    seed: tuple[int, ...],
) -> np.ndarray:
    """So many examples of finished tasks in turn."""
    how = stream.config.memory.rehearsal
    count = counts(shares(ages, how.law, how.rate), total, how.least)
    return rehearsed(groups, count, seed, stream.config.views)


def kept_before(stream: Stream, task: int) -> list[tuple[int, Stored]]:
    """(age, what is kept) of each task before; of the first one itself where there is none yet."""
    done = min(task, len(stream.tasks))
    if not done:
        order = memories.order_of(stream.tasks[0].ids, (stream.config.train.seed, 0))
        return [(1, Stored(order[0][: stream.config.memory.size], order[1], {}))]
    ended = [read_stored(stream.folder(each) / "memory.npz") for each in range(done)]
    orders = [(each.ids, each.keys) for each in ended]
    ids = memories.kept(orders, stream.config.memory.size, stream.config.memory.kind)
    found = zip(range(done, 0, -1), ended, ids, strict=True)
    return [(age, each.only(some)) for age, each, some in found if len(some)]


def identity_of(stream: Stream, task: int) -> str:
    """Of the data, the seed and everything else that decides what this task's steps see."""
    parts = [stream.tokenised.fingerprint, str(stream.config.train.seed), str(task)]
    parts += [str((t.name, t.steps, fingerprint_of({"ids": t.ids}))) for t in stream.tasks]
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
