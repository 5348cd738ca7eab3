"""A small Llama and its runs, as plans and steps without arrays are told of them."""

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.config import UnlearnConfig

LLAMA = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
}
GIVEN = {"model": "-", "forget": "-", "retain": "-", "run_dir": "-", "method": "graddiff"}


def configured(**options):
    config = configs.resolve(UnlearnConfig, GIVEN | {"train": {"batch_size": 32}} | options)
    return config, methods.from_config(config.method)
