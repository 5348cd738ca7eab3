"""A tiny random model, its tokenizer, and a few fictitious people."""

import functools

from jaxforget.data import fictitious
from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.models import Compute
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
