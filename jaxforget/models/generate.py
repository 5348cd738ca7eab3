"""Batched generation: what callers pass, checked and arranged for the compiled loop."""

import functools
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.models.config import DecoderConfig
from jaxforget.models.decoder import Compute
from jaxforget.models.generate_loop import Sampling, program

log = logging.getLogger(__name__)

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
    greedy = temperature == 0
    keys = None
    if not greedy:
        assert key is not None
        numbers = jnp.arange(len(mask)) if rows is None else jnp.asarray(rows)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
    sampling = Sampling(
        keys,
        jnp.float32(1.0 if greedy else temperature),
        jnp.float32(top_p),
        jnp.int32(top_k or cfg.vocab_size),
    )
    return program()(
        params,
        jnp.asarray(prompts, jnp.int32),
        jnp.asarray(mask),
        jnp.asarray(eos_ids, jnp.int32),
        jnp.int32(pad_id),
        sampling,
        cfg=cfg,
        count=max_new_tokens,
        greedy=greedy,
        dtype=(compute or Compute()).dtype,
    )


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
    """Continue any number of prompts, in batches of similar length and few different shapes.

    Args:
      params: of the decoder, with or without adapters; moved to the default device once.
      cfg: the architecture.
      prompts: int32 `[length]` each, length >= 1.
      max_new_tokens, eos_ids, key, temperature, top_p, top_k, compute: see `generate`; a
        prompt's place in `prompts` is the number of its row.
      batch_size: rows of every batch; the last one is filled with empty rows.
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
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[np.ndarray] = [np.empty(0, np.int32)] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tokens, mask, rows = _left_padded(prompts, chosen, batch_size)
        made, lengths = jax.device_get(
            generate(
                params,
                cfg,
                tokens,
                mask,
                max_new_tokens=max_new_tokens,
                eos_ids=eos_ids,
                key=key,
                rows=rows,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                compute=compute,
            )
        )
        for place, index in enumerate(chosen):
            answers[index] = made[place, : lengths[place]]
    return answers


def _left_padded(
    prompts: Sequence[np.ndarray], chosen: list[int], batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    longest = max(len(prompts[index]) for index in chosen)
    width = -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    tokens = np.zeros((batch_size, width), np.int32)
    mask = np.zeros((batch_size, width), bool)
    rows = np.zeros(batch_size, np.int32)
    for place, index in enumerate(chosen):
        tokens[place, width - len(prompts[index]) :] = prompts[index]
        mask[place, width - len(prompts[index]) :] = True
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
