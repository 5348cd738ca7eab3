"""One teacher-forced pass over a tokenised set: everything likelihood metrics need of each target.

Rows are packed densely and scored by one compiled program; results come back in the order of the
set, whatever the packing was.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget.data.pack import pack_all
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.shared_beginnings import Packed, pack_shared
from jaxforget.engine import mesh as meshes
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Scores, TokenBatch

_MULTIPLE = 64


@dataclass(frozen=True)
class TokenTable:
    """Values of every labelled target of a set, in flat order; M targets, n examples.

    Attributes:
      offsets: int64 `[n + 1]`; example i owns the slice `offsets[i]:offsets[i + 1]`.
      logp: float32 `[M]`, log-probability of the target, nats.
      hit: float32 `[M]`, 1 where the target is the most likely token; None unless asked for.
      mean: float32 `[M]`, E_p[log p]; None unless asked for.
      second_moment: float32 `[M]`, E_p[(log p)^2]; None unless asked for.
      hidden: float32 `[M, D]`, final hidden states; None unless asked for.
      residual: float32 `[M, D]`, output of an inner layer; None unless asked for.
      values: float32 `[M, K]`, see `Scores.values`; None unless asked for.
    """

    offsets: np.ndarray
    logp: np.ndarray
    hit: np.ndarray | None = None
    mean: np.ndarray | None = None
    second_moment: np.ndarray | None = None
    hidden: np.ndarray | None = None
    residual: np.ndarray | None = None
    values: np.ndarray | None = None


def score_set(
    score: Callable[..., Scores],
    params: Params,
    tokenised: TokenisedSet,
    *,
    rows: int | None = None,
    length: int | None = None,
    stats: bool = False,
    hidden: bool = False,
    residual: int | None = None,
    values: tuple[int, int] | None = None,
    share_prompts: bool = False,
    unseen: int | None = None,
    put: Callable[[Any], Any] | None = None,
    counted: Callable[[int, int], None] = lambda *_: None,
) -> TokenTable:
    """Score a set.

    Args:
      score: called as score(params, batch), or score(params, batch, stats=True).
      params: of the model.
      tokenised: the set.
      rows: packed rows scored at a time; where the parameters are divided over devices, a multiple
        of what divides rows is taken. None: 8, on a CPU 2, whose caches hold no more.
      length: tokens of a packed row; None: see `packed_length`.
      stats: also hit, mean and second moment of each target.
      hidden: also final hidden states.
      residual: also the output of this layer, counted from 0, negative from the last.
      values: also norms of attention's values in the first layers at the first positions.
      share_prompts: compute what examples begin with once for all of them; `score` must heed
        `TokenBatch.until`, and `values` must be None.
      unseen: a token that attention passes over, under `share_prompts`; None: it sees all.
      put: places a batch on the devices; None: on those of the parameters.
      counted: told (batches done, batches in all).
    Returns:
      See `TokenTable`; independent of packing.
    """
    mesh = meshes.mesh_of(params)
    rows = meshes.whole_rows(rows or (2 if jax.default_backend() == "cpu" else 8), mesh)
    if share_prompts:
        packed = pack_shared(tokenised, rows=rows, length=length, unseen=unseen)
    elif unseen is not None:
        raise ValueError("unseen: attention goes by segments, unless share_prompts is set")
    else:
        packed = _packed_alone(tokenised, rows, length or packed_length(tokenised))
    names = _wanted(stats, hidden, residual is not None, values is not None)
    run = _compiled(score, names, stats, residual, values)
    tables: dict[str, np.ndarray] = {}
    pending: tuple[np.ndarray, np.ndarray, Any] | None = None
    put = put or (lambda batch: meshes.put_rows(batch, mesh))
    for done, (batch, labels, places) in enumerate(zip(*packed, strict=True), start=1):
        with meshes.in_use(mesh):
            answer = meshes.whole(run(params, put(batch)), mesh)
        if pending is not None:
            _unpack(tokenised, *pending, tables)
        pending = (labels, places, answer)
        counted(done, len(packed.batches))
    if pending is not None:
        _unpack(tokenised, *pending, tables)
    return TokenTable(offsets=tokenised.label_offsets, **tables)


def packed_length(tokenised: TokenisedSet) -> int:
    """Tokens of a packed row: the longest example, at least 256, rounded up to 64."""
    longest = int(tokenised.lengths.max())
    return max(256, -(-longest // _MULTIPLE) * _MULTIPLE)


def _wanted(stats: bool, hidden: bool, residual: bool, values: bool) -> tuple[str, ...]:
    names = [field.name for field in fields(TokenTable) if field.name != "offsets"]
    chosen = {"logp", *(["hidden"] if hidden else []), *(["residual"] if residual else [])}
    chosen |= {"hit", "mean", "second_moment"} if stats else set()
    chosen |= {"values"} if values else set()
    return tuple(name for name in names if name in chosen)


@functools.lru_cache(maxsize=8)
def _compiled(
    score: Callable[..., Scores],
    names: tuple[str, ...],
    stats: bool,
    residual: int | None,
    values: tuple[int, int] | None,
) -> Callable[..., Any]:
    def run(params: Params, batch: TokenBatch) -> tuple[Any, dict[str, Any]]:
        asked: dict[str, Any] = {"stats": True} if stats else {}
        asked |= {} if residual is None else {"residual": residual}
        asked |= {} if values is None else {"values": values}
        scores = score(params, batch, **asked)
        own = ("logp", "hidden", "residual", "values")
        holders = [scores if name in own else scores.stats for name in names]
        found = zip(names, holders, strict=True)
        floats = {name: jnp.asarray(getattr(holder, name), jnp.float32) for name, holder in found}
        return scores.mask, floats

    return jax.jit(run, compiler_options=compiler_options())


def _packed_alone(tokenised: TokenisedSet, rows: int, length: int) -> Packed:
    """Every example by itself, and where its labels are."""
    batches = pack_all(tokenised, rows=rows, length=length)
    labels = [_labels(tokenised, batch) for batch in batches]
    return Packed(batches, labels, [np.arange(len(each)) for each in labels])


def _labels(tokenised: TokenisedSet, batch: TokenBatch) -> np.ndarray:
    """Which labelled target of the set is at each labelled place of a batch of `pack_all`."""
    row, place = np.nonzero(batch.mask)
    examples = np.asarray(batch.example)[row, np.asarray(batch.segments)[row, place] - 1]
    # labelled targets of one example are neighbours, in order: count from the first of each
    new = np.concatenate([[True], (examples[1:] != examples[:-1]) | (row[1:] != row[:-1])])
    starts = np.nonzero(new)[0]
    sizes = np.diff(np.append(starts, len(examples)))
    within = np.arange(len(examples)) - np.repeat(starts, sizes)
    return tokenised.label_offsets[examples] + within


def _unpack(
    tokenised: TokenisedSet,
    labels: np.ndarray,
    places: np.ndarray,
    answer: Any,
    tables: dict[str, np.ndarray],
) -> None:
    """Copy a batch's values to where they belong in the flat tables."""
    mask, values = jax.device_get(answer)
    row, slot = (index[places] for index in np.nonzero(mask))
    count = int(tokenised.label_offsets[-1])
    for name, value in values.items():
        if name not in tables:
            tables[name] = np.zeros((count, *value.shape[2:]), value.dtype)
        tables[name][labels] = value[row, slot]
