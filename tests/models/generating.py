"""Prompts, and what a model says to them when the whole text is run again for every token."""

import jax
import jax.numpy as jnp
import numpy as np
from marks import slow_but

from jaxforget.models import decoder

N = 12
# grouped heads, windows of 6 in alternate layers, soft caps, learned positions, parallel blocks
VARIED = slow_but(
    ("llama32", "gemma3_text", "gpt2"),
    ("llama32", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "qwen3", "phi"),
)


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 96, length).astype(np.int32) for length in lengths]


def left_padded(some, width):
    tokens, mask = np.full((len(some), width), 7, np.int32), np.zeros((len(some), width), bool)
    for row, prompt in enumerate(some):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return tokens, mask


@jax.jit(static_argnames="cfg")
def last_logits(params, tokens, count, cfg):
    """Logits behind the first `count` tokens of one row, without any cache."""
    positions = jnp.arange(len(tokens))
    segments = (positions < count).astype(jnp.int32)
    hidden, _ = decoder.hidden_states(params, tokens[None], segments[None], positions[None], cfg)
    return decoder.logits(hidden[0, count - 1], decoder.head(params, cfg))


def oracle(params, cfg, prompt, eos=(), count=N):
    """Arg-max continuation by running the text again for every token."""
    text = np.zeros(max(48, len(prompt) + count), np.int32)
    text[: len(prompt)] = prompt
    made = []
    for place in range(len(prompt), len(prompt) + count):
        made.append(int(np.argmax(last_logits(params, jnp.asarray(text), place, cfg))))
        text[place] = made[-1]
        if made[-1] in eos:
            break
    return made
