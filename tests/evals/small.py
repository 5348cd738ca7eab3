"""A tiny random model, its tokenizer, and a few fictitious people."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget.data import fictitious
from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.models import Compute, decoder
from jaxforget.models.language_model import from_scratch

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@functools.cache
def tokenizer():
    return fictitious.train_tokenizer(fictitious.language(), 512)


def model(seed=0):
    config = {**fictitious.model_config(tokenizer()), **SIZES, "initializer_range": 0.3}
    return from_scratch(config, tokenizer(), seed, Compute(remat="none"))


@functools.cache
def records():
    """By set, as an evaluation reads them."""
    made = fictitious.generate(0, forget_people=1, retain_people=12, known_people=4, facts=3)
    return {
        name: [
            Record(
                row["question"],
                row["answer"],
                index,
                f"{name}.jsonl",
                {k: v for k, v in row.items() if k not in ("question", "answer")},
            )
            for index, row in enumerate(rows[:6])
        ]
        for name, rows in made.sets.items()
    }


def tokens(some):
    return tokenise(list(some), tokenizer(), Template(), max_length=128)


def reference_logp(lm, text, start):
    """Float64 log-probabilities of the tokens of `text[start:]` and of the blanks before it.

    From whole distributions; one text on its own, without packing, targets or kernels.
    """
    start = len(text[:start].rstrip(" "))
    given = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = given["input_ids"]
    first = next(i for i, (_, stop) in enumerate(given["offset_mapping"]) if stop > start)
    row = np.zeros((1, 512), np.int32)
    row[0, : len(ids)] = ids
    logits = np.asarray(_distributions(lm.params, row, lm.config, lm.compute)[0], np.float64)
    logp = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logp -= logits.max(-1, keepdims=True)
    return np.asarray([logp[at - 1, ids[at]] for at in range(max(first, 1), len(ids))])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _distributions(params, row, config, compute):
    place = jnp.arange(row.shape[1])[None]
    hidden, _ = decoder.hidden_states(params, row, jnp.ones_like(row), place, config, compute)
    return decoder.logits(hidden, decoder.head(params, config, compute))
