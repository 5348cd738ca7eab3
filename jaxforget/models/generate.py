"""Batched generation: what callers pass, checked and arranged for the compiled loop."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.models import generate_loop, generate_queue
from jaxforget.models.config import DecoderConfig
from jaxforget.models.decoder import Compute
from jaxforget.models.sampling import Sampling

log = logging.getLogger(__name__)

_SHARED_MULTIPLE, _SHARED_IN_BATCHES = 8, 64
_NOTHING = np.zeros(0, np.int32)
PROMPT_MULTIPLE = 32  # prompt lengths are rounded up to this, so that few programs are compiled


def generate(
    params: Params,
    cfg: DecoderConfig,
    prompts: np.ndarray | Array,
    prompt_mask: np.ndarray | Array,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int = 0,
    key: Array | None = None,
    rows: np.ndarray | Array | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    compute: Compute | None = None,
) -> tuple[Array, Array]:
    """Continue a batch of left-padded prompts until every row has ended.

    Args:
      params: of the decoder, with or without adapters.
      cfg: the architecture.
      prompts: int32 `[B, P]`, padding on the left.
      prompt_mask: `[B, P]`, nonzero at real tokens; a row without any is left alone.
      max_new_tokens: N >= 1, the most tokens a row gets.
      eos_ids: a row ends behind the first of these; () lets every row run to N.
      pad_id: fills `tokens` behind the end.
      key: from `jax.random.key`; needed where temperature > 0.
      rows: int32 `[B]`, a number for each row: a row's random numbers depend on it, the key and
        the step alone, not on the batch around it. None: 0..B-1.
      temperature: 0 takes the likeliest token; otherwise logits are divided by it.
      top_p: sample from the smallest set of likeliest tokens that has this probability, (0, 1].
      top_k: sample from this many likeliest tokens; 0: from all.
      compute: its dtype is used; None: the default of `Compute`.
    Returns:
      Tokens int32 `[B, N]`, the ending token included and `pad_id` behind it; and the number of
      new tokens of each row, the ending one included, int32 `[B]`.
    Raises:
      UserError: an impossible option, or more tokens than the model has learned positions.
    """
    check_options(max_new_tokens, key, temperature, top_p, top_k)
    mask = np.asarray(prompt_mask) != 0
    _check_positions(cfg, int(mask.sum(axis=1).max()), max_new_tokens)
    how = _How(max_new_tokens, eos_ids, pad_id, key, temperature, top_p, top_k, _dtype(compute))
    rows = np.arange(len(mask)) if rows is None else rows
    given = jnp.asarray(prompts, jnp.int32), jnp.asarray(mask)
    return how.batch(params, cfg, _NOTHING, *given, rows)


@dataclass(frozen=True)
class _How:
    """Options of `generate`, checked."""

    count: int
    eos_ids: tuple[int, ...]
    pad_id: int
    key: Array | None
    temperature: float
    top_p: float
    top_k: int
    dtype: str

    def batch(
        self,
        params: Params,
        cfg: DecoderConfig,
        shared: np.ndarray,
        prompts: Any,
        mask: Any,
        rows: Any,
    ) -> tuple[Array, Array]:
        """Continue every row, all behind `shared`."""
        return generate_loop.program()(
            params, shared, prompts, mask, *self._traced(cfg, rows), **self._static(cfg)
        )

    def queue(
        self,
        params: Params,
        cfg: DecoderConfig,
        shared: np.ndarray,
        prompts: np.ndarray,
        mask: np.ndarray,
        rows: np.ndarray,
        total: int,
        slots: int,
    ) -> tuple[Array, Array]:
        """Continue the first `total` rows, all behind `shared`, `slots` at a time."""
        count, traced = jnp.int32(total), self._traced(cfg, rows)
        return generate_queue.program()(
            params, shared, prompts, mask, count, *traced, slots=slots, **self._static(cfg)
        )

    def _static(self, cfg: DecoderConfig) -> dict[str, Any]:
        greedy = self.temperature == 0
        return {"cfg": cfg, "count": self.count, "greedy": greedy, "dtype": self.dtype}

    def _traced(self, cfg: DecoderConfig, rows: Any) -> tuple[Array, Array, Sampling]:
        keys = None
        if self.temperature > 0:
            assert self.key is not None
            keys = jax.vmap(functools.partial(jax.random.fold_in, self.key))(jnp.asarray(rows))
        sampling = Sampling(
            keys,
            jnp.float32(self.temperature or 1.0),
            jnp.float32(self.top_p),
            jnp.int32(self.top_k or cfg.vocab_size),
        )
        return jnp.asarray(self.eos_ids, jnp.int32), jnp.int32(self.pad_id), sampling


def _dtype(compute: Compute | None) -> str:
    return (compute or Compute()).dtype


def generate_many(
    params: Params,
    cfg: DecoderConfig,
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    batch_size: int = 16,
    key: Array | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    compute: Compute | None = None,
) -> list[np.ndarray]:
    """Continue any number of prompts, those of similar length together, in few different shapes.

    Args:
      params: of the decoder, with or without adapters; moved to the default device where they
        lie on the host.
      cfg: the architecture.
      prompts: int32 `[length]` each, length >= 1.
      max_new_tokens, eos_ids, key, temperature, top_p, top_k, compute: see `generate`; a
        prompt's place in `prompts` is the number of its row.
      batch_size: prompts continued at a time; where there are more, the next one takes the place
        of one that has ended.
    Returns:
      New tokens of each prompt, int32, in the order of `prompts`, the ending token included.
    Raises:
      UserError: see `generate`; an empty prompt, or one with an id beyond the vocabulary.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be >= 1, got {batch_size}")
    check_options(max_new_tokens, key, temperature, top_p, top_k)
    _check_prompts(prompts, cfg)
    params = jax.tree.map(jnp.asarray, params)
    mesh = meshes.mesh_of(params)
    batch_size = meshes.whole_rows(batch_size, mesh)
    how = _How(max_new_tokens, eos_ids, 0, key, temperature, top_p, top_k, _dtype(compute))
    answers: list[np.ndarray] = [np.empty(0, np.int32)] * len(prompts)
    ahead = _shared(prompts) if prompts else _NOTHING
    # batches of few prompts would be compiled for every short beginning that they happen to have
    ahead = ahead[: len(ahead) // _SHARED_IN_BATCHES * _SHARED_IN_BATCHES]
    for chosen in _alike(prompts, batch_size, queues=mesh is None):
        queued = len(chosen) > batch_size
        _check_positions(cfg, max(len(prompts[index]) for index in chosen), max_new_tokens)
        if queued:
            places = _queue_places(len(chosen), batch_size)
        else:  # few prompts on one device need few rows; a mesh's batches are of one shape
            few = min(batch_size, _power_of_two(len(chosen)))
            places = few if mesh is None else batch_size
        shared = _shared([prompts[index] for index in chosen]) if queued else ahead
        tokens, mask, rows = _left_padded(prompts, chosen, places, len(shared))
        if queued:
            found = how.queue(params, cfg, shared, tokens, mask, rows, len(chosen), batch_size)
        else:
            placed = meshes.put_rows((tokens, mask), mesh)
            given = params, cfg, shared, placed[0], placed[1], rows
            with meshes.in_use(mesh):
                found = meshes.whole(how.batch(*given), mesh)
        made, lengths = jax.device_get(found)
        for place, index in enumerate(chosen):
            answers[index] = made[place, : lengths[place]]
    return answers


def _alike(prompts: Sequence[np.ndarray], batch_size: int, *, queues: bool) -> list[list[int]]:
    """Prompts of similar length: a queue each of more than a batch, or batches.

    Few of one length join the next longer ones, so that few programs are compiled. In queues the
    length is that of what follows the beginning that all share.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    if not queues:
        return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    ahead = len(_shared(prompts)) if prompts else 0
    widths = [_width(len(prompt) - ahead) for prompt in prompts]
    found: list[list[int]] = []
    for index in order:
        last = found[-1] if found else []
        wider = last and widths[last[-1]] < widths[index]
        if not found or (wider and len(last) >= 8 * batch_size):
            found.append([])
        found[-1].append(index)
    return found


def _shared(prompts: Sequence[np.ndarray]) -> np.ndarray:
    """What all prompts begin with, so that a token is left of each; nothing where that is little.

    Its length is a multiple of `_SHARED_MULTIPLE`, so that few programs are compiled.
    """
    least = min(len(prompt) for prompt in prompts) - 1
    starts = np.stack([np.asarray(prompt[:least], np.int32) for prompt in prompts])
    alike = np.append((starts == starts[:1]).all(axis=0), False)
    return starts[0, : int(alike.argmin()) // _SHARED_MULTIPLE * _SHARED_MULTIPLE]


def _width(length: int) -> int:
    return -(-length // PROMPT_MULTIPLE) * PROMPT_MULTIPLE


def _queue_places(count: int, slots: int) -> int:
    """Room for so many prompts and the empty ones behind them: a power of two, for few programs."""
    return _power_of_two(count + generate_queue.refilled(slots))


def _power_of_two(count: int) -> int:
    """The least that is not below a count."""
    return 1 << (count - 1).bit_length()


def _left_padded(
    prompts: Sequence[np.ndarray], chosen: list[int], places: int, skipped: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What follows the first `skipped` tokens of the prompts, their real tokens, and their rows."""
    width = _width(max(len(prompts[index]) for index in chosen) - skipped)
    tokens = np.zeros((places, width), np.int32)
    mask = np.zeros((places, width), bool)
    rows = np.zeros(places, np.int32)
    for place, index in enumerate(chosen):
        own = prompts[index][skipped:]
        tokens[place, width - len(own) :] = own
        mask[place, width - len(own) :] = True
        rows[place] = index
    return tokens, mask, rows


def _check_prompts(prompts: Sequence[np.ndarray], cfg: DecoderConfig) -> None:
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {index} is empty; generation needs at least one token")
        low, high = int(np.min(prompt)), int(np.max(prompt))
        if low < 0 or high >= cfg.vocab_size:
            raise UserError(
                f"prompt {index} holds token {low if low < 0 else high}; allowed: 0 to "
                f"{cfg.vocab_size - 1}, the model's vocabulary"
            )


def check_options(
    max_new_tokens: int, key: Array | None, temperature: float, top_p: float, top_k: int
) -> None:
    """Refuse options of `generate` that make no sense.

    Raises:
      UserError: names the option and what is allowed.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
    if not temperature >= 0:
        raise UserError(f"temperature must be >= 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be in (0, 1], got {top_p}")
    if top_k < 0:
        raise UserError(f"top_k must be >= 0 (0: all tokens), got {top_k}")
    if temperature > 0 and key is None:
        raise UserError(f"sampling at temperature {temperature} needs a random key")


def _check_positions(cfg: DecoderConfig, prompt: int, new: int) -> None:
    if prompt + new <= cfg.max_positions:
        return
    what = f"a prompt of {prompt} tokens and max_new_tokens {new}"
    if cfg.learned_positions:
        raise UserError(f"{what} exceed the {cfg.max_positions} positions the model has learned")
    log.warning("%s exceed the %d positions the model was made for", what, cfg.max_positions)
