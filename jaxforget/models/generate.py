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
from jaxforget.models import generate_loop, generate_queue, prompt_rows
from jaxforget.models.config import DecoderConfig
from jaxforget.models.decoder import Compute
from jaxforget.models.sampling import Sampling

log = logging.getLogger(__name__)

_SHARED_IN_BATCHES = 64
_NOTHING = np.zeros(0, np.int32)


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
    return how.batch(params, cfg, _NOTHING, *given, np.zeros(len(mask), np.int32), rows)


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
        begun: np.ndarray,
        rows: Any,
    ) -> tuple[Array, Array]:
        """Continue every row, all behind `shared`; `begun` `[B]` tokens are answers' already."""
        return generate_loop.program()(
            params, shared, prompts, mask, begun, *self._traced(cfg, rows), **self._static(cfg)
        )

    def queue(
        self,
        params: Params,
        cfg: DecoderConfig,
        shared: np.ndarray,
        known: tuple[np.ndarray, np.ndarray],
        begun: tuple[np.ndarray, np.ndarray],
        rows: np.ndarray,
        total: int,
        slots: int,
    ) -> tuple[Array, Array]:
        """Answer the first `total` rows, all behind `shared`, `slots` at a time."""
        eos, _, sampling = self._traced(cfg, rows)
        given = shared, *known, *begun, jnp.int32(total), eos, sampling
        return generate_queue.program()(params, *given, slots=slots, **self._static(cfg))

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
    begun: Sequence[np.ndarray] | None = None,
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
      begun: int32 `[length]` each, length >= 0, the tokens that the answer to each prompt begins
        with: they are run together instead of one by one. None: no answer is begun.
    Returns:
      New tokens of each prompt, int32, in the order of `prompts`, the ending token included; what
      they were begun with counts as new, and what follows an ending token in it is left out.
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
    answers, done = _begun(prompts, begun, max_new_tokens, eos_ids)
    ahead = prompt_rows.shared_beginning(prompts) if prompts else _NOTHING
    # batches of few prompts would be compiled for every short beginning that they happen to have
    ahead = ahead[: len(ahead) // _SHARED_IN_BATCHES * _SHARED_IN_BATCHES]
    for group in prompt_rows.alike(prompts, batch_size, queues=mesh is None):
        _check_positions(cfg, max(len(prompts[index]) for index in group), max_new_tokens)
        chosen = [index for index in group if not done[index]]
        if not chosen:
            continue
        if len(group) > batch_size:
            made = _queued(how, params, cfg, prompts, answers, group, chosen, batch_size)
        else:
            made = _batched(how, params, cfg, prompts, answers, chosen, batch_size, ahead, mesh)
        for index, answer in made.items():
            answers[index] = answer
    return answers


def _begun(
    prompts: Sequence[np.ndarray],
    begun: Sequence[np.ndarray] | None,
    count: int,
    eos_ids: tuple[int, ...],
) -> tuple[list[np.ndarray], list[bool]]:
    """What each answer is before anything is run, and whether it is whole."""
    if begun is not None and len(begun) != len(prompts):
        raise UserError(f"begun has {len(begun)} answers for {len(prompts)} prompts")
    answers, done = [], []
    for given in begun or [_NOTHING] * len(prompts):
        tokens = np.asarray(given, np.int32)[:count]
        ends = np.flatnonzero(np.isin(tokens, eos_ids))
        answers.append(tokens[: ends[0] + 1] if len(ends) else tokens)
        done.append(len(ends) > 0 or len(tokens) == count)
    return answers, done


def _queued(
    how: _How,
    params: Params,
    cfg: DecoderConfig,
    prompts: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    group: list[int],
    chosen: list[int],
    slots: int,
) -> dict[int, np.ndarray]:
    """Whole answers to the chosen prompts of a group; shapes depend on the group alone."""
    shared = prompt_rows.shared_beginning([prompts[index] for index in group])
    ahead, places = len(shared), prompt_rows.queue_places(len(group), slots)
    # slots that are filled together wait for the one of which most is known
    chosen = sorted(chosen, key=lambda index: len(prompts[index]) + len(answers[index]))
    longest = max(len(prompts[index]) for index in group) - ahead + how.count
    known = np.zeros((places, prompt_rows.rounded(longest)), np.int32)
    begun = np.full((places, how.count), how.pad_id, np.int32)
    prompt_counts, begun_counts, rows = np.zeros((3, places), np.int32)
    for place, index in enumerate(chosen):
        prompt, answer = prompts[index][ahead:], answers[index]
        known[place, : len(prompt) + len(answer)] = [*prompt, *answer]
        begun[place, : len(answer)] = answer
        prompt_counts[place], begun_counts[place], rows[place] = len(prompt), len(answer), index
    given = shared, (known, prompt_counts), (begun, begun_counts), rows
    found, lengths = jax.device_get(how.queue(params, cfg, *given, len(chosen), slots))
    return {index: found[place, : lengths[place]] for place, index in enumerate(chosen)}


def _batched(
    how: _How,
    params: Params,
    cfg: DecoderConfig,
    prompts: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    chosen: list[int],
    batch_size: int,
    shared: np.ndarray,
    mesh: Any,
) -> dict[int, np.ndarray]:
    """Whole answers to the chosen prompts, which are at most `batch_size`."""
    # few prompts on one device need few rows; a mesh's batches are of one shape
    places = batch_size if mesh else min(batch_size, prompt_rows.power_of_two(len(chosen)))
    known = [np.concatenate([prompts[i][len(shared) :], answers[i]]) for i in chosen]
    tokens, mask, rows = prompt_rows.left_padded(known, chosen, places)
    begun = np.zeros(places, np.int32)
    begun[: len(chosen)] = [len(answers[index]) for index in chosen]
    tokens, mask, begun = meshes.put_rows((tokens, mask, begun), mesh)
    with meshes.in_use(mesh):
        made = how.batch(params, cfg, shared, tokens, mask, begun, rows)
        found, lengths = jax.device_get(meshes.whole(made, mesh))
    new = {index: found[place, : lengths[place]] for place, index in enumerate(chosen)}
    return {index: np.concatenate([answers[index], each]) for index, each in new.items()}


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
