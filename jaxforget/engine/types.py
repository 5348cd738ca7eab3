"""Core types: what a batch is, what a model answers, what an objective is.

Shapes: B rows of a batch, L positions of a row, S examples packed into a row,
T target slots of a row (see `Scores`), D hidden width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
from jax import Array

from jaxforget.engine.tree import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Totals:
    """Counts of a whole optimizer step, so that micro-batches share one denominator.

    Attributes:
      tokens: labelled targets, float32 scalar.
      examples: examples, float32 scalar.
    """

    tokens: Array
    examples: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tiles:
    """Attention in small dense pieces, which together hold whatever a token may see.

    It says where to look, not who is seen: results are those of the whole row. Tile n of the j-th
    kind asks from its queries among its keys, all of them places of the same row; -1 is none.

    Attributes:
      queries: by kind, int32 `[B, N_j, Q_j]`; every place that is not padding is in one tile.
      keys: by kind, int32 `[B, N_j, K_j]`.
      back: int32 `[B, L]`, where a place is among the queries of all tiles, kind after kind,
        counted from the begin of the row's; anything at padding.
    """

    queries: tuple[Array, ...]
    keys: tuple[Array, ...]
    back: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBatch:
    """Packed rows of examples. Attention is causal and never crosses segments.

    Attributes:
      tokens: int32 `[B, L]`, input ids.
      targets: int32 `[B, L]`, the id that follows each input inside its example.
      segments: int32 `[B, L]`, 0 is padding, 1..S number the examples of the row.
      positions: int32 `[B, L]`, restart at 0 in every segment.
      mask: float32 `[B, L]`, 1 where the target counts.
      example: int32 `[B, S]`, dataset row of each packed segment, -1 is an empty slot.
      until: int32 `[B, L]`, where attention goes by places instead of segments: a token is seen
        from its own place on until before this one, counted from the begin of the row, 0: never.
        None: it goes by segments.
      totals: counts of the whole step where this batch is one micro-batch of it; None: itself.
      tiles: how attention is computed where it goes by segments; None: every token of a row
        against all of it.
      slots: int32 `[B, T]`, the places that go through the output head; None: those of the
        labelled targets, in order, as many as `max_targets`.
      max_targets: static upper bound of labelled targets in any row, so that only they go
        through the output head; None: every position may be labelled.
    """

    tokens: Array
    targets: Array
    segments: Array
    positions: Array
    mask: Array
    example: Array
    until: Array | None = None
    totals: Totals | None = None
    tiles: Tiles | None = None
    slots: Array | None = None
    max_targets: int | None = field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Head:
    """The output projection, for losses over whole distributions.

    Attributes:
      weight: `[V, D]`.
      bias: `[V]` or None.
      softcap: logits become softcap * tanh(logits / softcap); None: unchanged.
    """

    weight: Array
    bias: Array | None = None
    softcap: float | None = field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenStats:
    """What evaluation needs of each target besides its log-probability; all float32 `[B, T]`.

    Attributes:
      hit: 1 where the arg-max of the distribution is the target.
      mean: E_p[log p], minus the entropy, nats.
      second_moment: E_p[(log p)^2], nats^2.
    """

    hit: Array
    mean: Array
    second_moment: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scores:
    """A model's answer to a batch, one slot per target.

    T = L when the batch has no `max_targets`; otherwise T = `max_targets` and slot t of a row
    is that row's t-th labelled target, in order, so that everything behind the head is small.

    Attributes:
      logp: float32 `[B, T]`, log p(target), nats; 0 where `mask` is 0.
      mask: float32 `[B, T]`, 1 where the slot counts.
      segments: int32 `[B, T]`, segment of each slot (0 where `mask` is 0 under `max_targets`).
      example: int32 `[B, S]`, as in the batch.
      hidden: `[B, T, D]` final hidden states behind each slot, or None.
      head: the projection from `hidden` to logits, or None.
      stats: see `TokenStats`; None unless asked for.
      targets: int32 `[B, T]`, the target of each slot; None where the model does not say.
      residual: `[B, T, D]`, output of an inner layer behind each slot; None unless asked for.
      mlp_inner: `[B, T, F]`, what the last matrix of a layer's feed-forward part multiplies,
        behind each slot; None unless asked for.
      values: float32 `[B, T, K]`, norms of attention's values at the first tokens of the slot's
        example, by token and layer, 0 where it is shorter; None unless asked for.
      totals: as in the batch.
    """

    logp: Array
    mask: Array
    segments: Array
    example: Array
    hidden: Array | None = None
    head: Head | None = None
    stats: TokenStats | None = None
    targets: Array | None = None
    residual: Array | None = None
    mlp_inner: Array | None = None
    values: Array | None = None
    totals: Totals | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Push:
    """A vector added to what a layer gives at one place of each row, for all that follows.

    Attributes:
      at: int32 `[B]`, the place in its row; negative: nowhere.
      by: `[B, D]`.
      layer: whose output it is, counted from 0, negative from the last.
    """

    at: Array
    by: Array
    layer: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReferenceScores:
    """Scores of the starting model for one batch, in the slots of `Scores`.

    Attributes:
      logp: float32 `[B, T]`.
      hidden: `[B, T, D]`, or None unless a distribution loss needs it.
      head: the starting model's output projection, or None.
      residual: `[B, T, D]`, output of its inner layer, or None.
      values: float32 `[B, T, K]`, see `Scores`, or None.
      words: int32 `[B, T, N]`, the words with the largest logits, or None.
      logits: float32 `[B, T, N]`, these logits, or None.
    """

    logp: Array
    hidden: Array | None = None
    head: Head | None = None
    residual: Array | None = None
    values: Array | None = None
    words: Array | None = None
    logits: Array | None = None


type ScoreFn = Callable[..., Scores]
"""(params, batch) -> scores; on request also `stats=True` (see `TokenStats`) or `residual=layer`
(output of that layer, counted from 0, negative from the last). Decoders of ours also take
`mlp_inner=layer`, `values=(layers, positions)` (see `Scores`) and `push` (see `Push`)."""

type Batches = dict[str, TokenBatch]
type Reference = dict[str, ReferenceScores]
type Terms = dict[str, Array]
type Metrics = dict[str, Array]
type Objective = Callable[[ScoreFn, Params, Batches, Reference], tuple[Terms, Metrics]]
"""(score, params, batches by role, reference by role) -> (terms to minimise, other scalars).

Every term and metric is this batch's *share* of a mean: with `totals` set, the shares of the
micro-batches of one step add up to the value over the whole step.
"""


@runtime_checkable
class Separable(Protocol):
    """An objective that can say what its terms cost one by one.

    Attributes:
      apart: by name of the term, in order, an objective of that term alone, which reads only its
        rows; None where terms share rows, so that one pass over all is cheaper.
    """

    @property
    def apart(self) -> Mapping[str, Objective] | None: ...  # noqa: D102


@dataclass(frozen=True)
class Combiner:
    """Turns the gradients of several terms into one direction. Mirrors optax on purpose.

    Attributes:
      init: params -> combiner state (any pytree).
      combine: (gradients by term, state, params) -> (direction, state, metrics).
      finish: optional (update made by the optimizer, state, params) -> (update, state, metrics),
        for guarantees that must survive momentum, decay and clipping.
      weights: set for a plain weighted sum, so that one backward pass suffices.
    """

    init: Callable[[Params], Any]
    combine: Callable[[dict[str, Params], Any, Params], tuple[Params, Any, Metrics]]
    finish: Callable[[Params, Any, Params], tuple[Params, Any, Metrics]] | None = None
    weights: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Loop:
    """In which order steps happen.

    Attributes:
      make: (score, objective, combiner, optimizer, *, accumulate) -> step, a pure function
        (state, frozen leaves, batches, reference) -> (state, metrics).
      init: (trained leaves, optimizer) -> what the loop carries in `State.loop_state`.
      second_order: whether its steps take exact products with Hessians of the score.
    """

    make: Callable[..., Callable[..., Any]]
    init: Callable[[Params, Any], Any]
    second_order: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Skips:
    """Steps refused because a loss or gradient was not finite; int32 scalars."""

    total: Array
    in_a_row: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything a run carries from step to step: one pytree, donated, saved whole.

    Attributes:
      step: int32 scalar, steps taken.
      params: the trained leaves only; frozen leaves travel beside the state.
      opt_state: optax state.
      combiner_state: see `Combiner`.
      loop_state: what a loop carries (duals, penalties); `()` for the plain loop.
      rng: jax.random key data, uint32.
      skips: see `Skips`.
    """

    step: Array
    params: Params
    opt_state: Any
    combiner_state: Any
    loop_state: Any
    rng: Array
    skips: Skips
