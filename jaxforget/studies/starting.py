"""How a run on text begins: with a model that is given, one from scratch, or what is finished."""

import json
from collections.abc import Sequence
from typing import Any

from jaxforget.config import TrainConfig
from jaxforget.config.stream import ScratchConfig
from jaxforget.data.fictitious import train_tokenizer
from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import RunDirectory
from jaxforget.models import Compute
from jaxforget.models.language_model import LanguageModel, from_scratch, load
from jaxforget.studies.common import Result, config_digest, longest


def finished_run(run: RunDirectory, config: Any) -> Result | None:
    """What a run with this very configuration has left; None where there is more to do."""
    if not run.results.exists() or not run.model.exists():
        return None
    results = json.loads(run.results.read_text())
    if results.get("config_sha256") != config_digest(config):
        return None
    return Result(load(run.model).params, results["metrics"], run)


def starting_model(config: Any, records: Sequence[Record]) -> LanguageModel:
    """The configured model, or one from scratch whose tokenizer is made from these records.

    Raises:
      UserError: not exactly one of `model` and `scratch`; a model without a tokenizer.
    """
    compute = Compute(dtype=config.train.compute, remat=config.train.remat)
    if (config.model is None) == (config.scratch is None):
        raise UserError("set one of model and scratch, and not both")
    if config.model is not None:
        lm = load(config.model, dtype=config.dtype, compute=compute)
        if lm.tokenizer is None:
            raise UserError(f"model: {config.model} has no tokenizer; add its tokenizer.json")
    else:
        assert config.scratch is not None
        lm = scratch(config.scratch, records, config.train.seed, compute, config.max_length)
    longest(config, lm)
    return lm


def scratch(
    config: ScratchConfig,
    records: Sequence[Record],
    seed: int,
    compute: Compute,
    length: int | None = None,
) -> LanguageModel:
    """A model that knows nothing but how these records are spelt."""
    if config.width % config.heads:
        raise UserError(f"scratch: {config.heads} heads do not divide a width of {config.width}")
    texts = [f"{record.prompt}{record.answer}" for record in records]
    tokenizer = train_tokenizer(texts, config.vocabulary)
    return from_scratch(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": config.width,
            "intermediate_size": config.inner,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.heads,
            "head_dim": config.width // config.heads,
            "hidden_act": "silu",
            "max_position_embeddings": max(512, length or 0),
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "dtype": "float32",
        },
        tokenizer,
        seed,
        compute,
    )


OF_PAIRS = ("pairing", "ratio", "entity_column")
"""Settings of training on several roles."""

OF_METHODS = ("realised_changes", "peer_compat", "evaluate_every", "select")
"""Settings of training by a method of unlearning, judged by a suite."""


def refuse_unread(train: TrainConfig, study: str) -> None:
    """Raise UserError where a study of retention is given a setting that it never reads."""
    plain = TrainConfig()
    for key in (*OF_PAIRS, *OF_METHODS):
        if getattr(train, key) != getattr(plain, key):
            raise UserError(f"train.{key}: {study} has no use for it; leave it out")
