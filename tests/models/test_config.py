"""config.json -> DecoderConfig: both spellings of transformers, and every way to be wrong."""

import json

import golden_models
import pytest

from jaxforget.engine.errors import UserError
from jaxforget.models import config
from jaxforget.models.config import DecoderConfig

LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ROPE3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def golden(case):
    return json.loads((golden_models.FOLDER / case / "config.json").read_text())


# how transformers 4 wrote the same thing
OLD_SPELLINGS = {
    "llama": {"rope_theta": 10000.0, "rope_scaling": None},
    "llama32": {
        "rope_theta": 500000.0,
        "rope_scaling": {**ROPE3, "original_max_position_embeddings": 16},
    },
    "mistral": {"rope_theta": 10000.0},
    "qwen2": {"rope_theta": 10000.0, "layer_types": None},
    "qwen3": {"rope_theta": 10000.0, "rope_scaling": None, "layer_types": None},
    "gemma2": {"rope_theta": 10000.0, "layer_types": None, "hidden_act": "gelu_pytorch_tanh"},
    "gemma3_text": {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "layer_types": None,
        "sliding_window_pattern": 6,
    },
    "phi": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "phi3": {"rope_theta": 10000.0, "rope_scaling": None},
    "phi3_long": {
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "su",
            "short_factor": [1.0, 1.5, 3.0],
            "long_factor": [2.0, 4.0, 8.0],
        },
    },
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25},
    "gpt_neox_sequential": {"rotary_emb_base": 5000, "rotary_pct": 0.5},
}


@pytest.mark.parametrize("case", OLD_SPELLINGS)
def test_transformers_4_and_5_spellings_mean_the_same(case):
    new = golden(case)
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    assert config.from_hf({**old, **OLD_SPELLINGS[case]}) == config.from_hf(new)


@pytest.mark.parametrize("case", golden_models.CASES)
def test_configs_hash_and_compare_by_value(case):
    first, second = DecoderConfig.from_hf(golden(case)), DecoderConfig.from_hf(golden(case))
    assert first == second and hash(first) == hash(second)


def test_layers_of_gemma_alternate_between_window_and_full():
    gemma2 = config.from_hf(golden("gemma2"))
    gemma3 = config.from_hf(golden("gemma3_text"))
    assert gemma2.layer_window == (6, 0, 6)
    assert gemma3.layer_window == (6, 6, 6, 6, 6, 0, 6)
    assert gemma3.layer_rope == (1, 1, 1, 1, 1, 0, 1)


def test_multimodal_gemma3_is_read_as_its_language_model():
    text = golden("gemma3_text")
    outer = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}
    assert config.from_hf(outer) == config.from_hf(text)


def test_longrope_ends_the_context_where_frequencies_would_change():
    assert config.from_hf(golden("phi3_long")).max_positions == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "glu"}, "hidden_act 'glu'"),
        ({"hidden_size": None}, "hidden_size must be an integer >= 1"),
        ({"hidden_size": 30}, "does not divide hidden_size 30"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": "96"}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "factor must be a number > 0"),
        ({"rope_scaling": {**ROPE3, "high_freq_factor": 1.0}}, "low_freq_factor must be <"),
        ({"rope_scaling": "linear"}, "rope_scaling must be a dictionary"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"model_type": "gemma3"}, "needs text_config"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full"]}, "layer_typ"),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm"),
        ({"model_type": "phi", "partial_rotary_factor": 0.4}, "even number from 2 to 8"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "must be causal"),
        ({"model_type": "phi3", "rope_scaling": {"type": "su"}}, "short_factor"),
    ],
)
def test_wrong_configs_are_named(change, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        config.from_hf({**LLAMA, **change})


def test_gpt2_with_scaling_by_layer_is_refused():
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx"):
        config.from_hf({**golden("gpt2"), "scale_attn_by_inverse_layer_idx": True})
