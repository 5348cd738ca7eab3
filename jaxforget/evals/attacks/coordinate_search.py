"""Search for a few tokens before a question behind which the answers are likely."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxforget.data.pack import pack_all
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.mesh import put_rows
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params
from jaxforget.engine.types import ScoreFn, TokenBatch
from jaxforget.evals.teacher_forced import packed_length


def inserted(
    tokenised: TokenisedSet, places: Sequence[int], ids: Sequence[int] | np.ndarray
) -> TokenisedSet:
    """The set with some tokens put into every example, as inputs that nobody is to predict.

    Args:
      tokenised: n examples, without columns.
      places: of each example, tokens before the new ones.
      ids: of the new tokens.
    """
    parts, labels = [], []
    for index, place in enumerate(places):
        part = slice(*tokenised.offsets[index : index + 2])
        whole = np.append(tokenised.tokens[part][:1], tokenised.targets[part])
        labelled = np.append(False, tokenised.mask[part])
        parts.append(np.insert(whole, place, ids))  # all of ids, in order, before `place`
        labels.append(np.insert(labelled, place, [False] * len(ids)))
    return replace(
        tokenised,
        tokens=np.concatenate([ids[:-1] for ids in parts]).astype(np.int32),
        targets=np.concatenate([ids[1:] for ids in parts]).astype(np.int32),
        mask=np.concatenate([labelled[1:] for labelled in labels]),
        offsets=np.cumsum([0, *(len(ids) - 1 for ids in parts)], dtype=np.int64),
        fingerprint=f"{tokenised.fingerprint} with {list(map(int, ids))}",
        columns={},
        entities=None,
    )


@dataclass(frozen=True)
class Problem:
    """Some examples with places for `length` tokens before each question.

    Attributes:
      batches: whose input ids count the rows of `inputs`; those from `len(inputs)` on are the
        places.
      inputs: embeddings of the tokens that occur, `[U, D]`.
      labelled: targets of all batches.
      length: of the trigger.
      mesh: devices.
    """

    batches: Sequence[TokenBatch]
    inputs: Array
    labelled: int
    length: int
    mesh: Mesh


def problem(
    params: Params,
    tokenised: TokenisedSet,
    places: Sequence[int],
    length: int,
    *,
    rows: int,
    mesh: Mesh,
) -> Problem:
    """Make a `Problem`.

    Args:
      params: with `embed/w`.
      tokenised: the examples as they are.
      places: see `inserted`.
      length: tokens of the trigger, >= 1.
      rows: packed rows at a time.
      mesh: devices.
    """
    table = params["embed"]["w"]
    made = inserted(tokenised, places, range(len(table), len(table) + length))
    ids, local = np.unique(made.tokens, return_inverse=True)
    known = ids[ids < len(table)]
    # places keep their order: their ids are the largest, so they come last
    made = replace(made, tokens=local.astype(np.int32))
    return Problem(
        pack_all(made, rows=rows, length=packed_length(made)),
        table[known],
        int(made.mask.sum()),
        length,
        mesh,
    )


def losses(score: ScoreFn, params: Params, task: Problem, triggers: np.ndarray) -> np.ndarray:
    """Mean NLL per answer token behind each trigger.

    Args:
      score: the model.
      params: of it.
      task: see `Problem`.
      triggers: ids, int `[C, length]`.
    Returns:
      float64 `[C]`, nats.
    """
    run = _compiled(score)[0]
    vectors = params["embed"]["w"][jnp.asarray(triggers)]
    with jax.set_mesh(task.mesh):
        found = [run(vectors, params, task.inputs, _put(task, each)) for each in task.batches]
    return np.sum([np.asarray(each, np.float64) for each in found], axis=0) / task.labelled


def slopes(score: ScoreFn, params: Params, task: Problem, trigger: np.ndarray) -> np.ndarray:
    """How the loss would change with the token at each place, to first order.

    Args:
      score, params, task: as for `losses`.
      trigger: ids, int `[length]`.
    Returns:
      float32 `[length, V]`, comparable within a place.
    """
    run = _compiled(score)[1]
    table = params["embed"]["w"]
    with jax.set_mesh(task.mesh):
        vectors = table[jnp.asarray(trigger)]
        pulls = [run(vectors, params, task.inputs, _put(task, each)) for each in task.batches]
    gradient = np.sum([np.asarray(each, np.float32) for each in pulls], axis=0) / task.labelled
    return np.asarray(jnp.asarray(gradient) @ table.astype(jnp.float32).T)


def _put(task: Problem, batch: TokenBatch) -> TokenBatch:
    return put_rows(batch, task.mesh)


@functools.lru_cache(maxsize=4)
def _compiled(score: ScoreFn) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """(losses of several triggers' vectors `[C, m, D]`, gradient at one's `[m, D]`)."""

    def loss(vectors: Array, params: Params, inputs: Array, batch: TokenBatch) -> Array:
        head = {"w": params["embed"]["w"], **params.get("head", {})}
        embed = {**params["embed"], "w": jnp.concatenate([inputs, vectors])}
        scores = score({**params, "embed": embed, "head": head}, batch)
        return -(scores.logp * scores.mask).sum()

    def several(vectors: Array, *rest: Any) -> Array:
        return jax.lax.map(lambda each: loss(each, *rest), vectors)

    options = compiler_options()
    return jax.jit(several, compiler_options=options), jax.jit(
        jax.grad(loss), compiler_options=options
    )


def descend(
    score: ScoreFn,
    params: Params,
    task: Problem,
    start: np.ndarray,
    *,
    steps: int,
    candidates: int,
    top: int,
    allowed: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, float]]:
    """Greedy coordinate gradient: exchange one token at a time for one that the gradient favours.

    Args:
      score, params, task: as for `losses`.
      start: ids, int `[length]`.
      steps: of the search.
      candidates: exchanges tried a step, drawn among the `top` tokens of every place.
      top: tokens of a place, those of the steepest descent.
      allowed: bool `[V]`, tokens that may be taken.
      rng: draws the candidates.
    Yields:
      (trigger, its loss) before the first step and after each; the loss never rises.
    Source: Zou et al. 2023 (arXiv 2307.15043), algorithm 1, but that it stays where no candidate
      is better.
    """
    best, least = start, float(losses(score, params, task, start[None])[0])
    yield best, least
    for _ in range(steps):
        slope = np.where(allowed, slopes(score, params, task, best), np.inf)
        favoured = np.argsort(slope, axis=1, kind="stable")[:, : min(top, int(allowed.sum()))]
        tried = np.tile(best, (candidates, 1))
        places = np.arange(candidates) % task.length
        drawn = rng.integers(favoured.shape[1], size=candidates)
        tried[np.arange(candidates), places] = favoured[places, drawn]
        found = losses(score, params, task, tried)
        if found.min() < least:
            best, least = tried[int(found.argmin())], float(found.min())
        yield best, least
