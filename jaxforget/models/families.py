"""Hugging Face config.json -> `DecoderConfig`, one function per family.

Both spellings are read: transformers 5 (`rope_parameters`) and 4 (`rope_theta`, `rope_scaling`).
An absent switch has the default of the family's configuration class in transformers; sizes must
be present.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.models import hf_values as hf
from jaxforget.models.config import DecoderConfig

type Config = hf.Config


def from_hf(config: Config) -> DecoderConfig:
    """Read the content of a Hugging Face config.json.

    Args:
      config: the parsed file; for multimodal Gemma 3 its `text_config` is used.
    Returns:
      The decoder's architecture.
    Raises:
      UserError: unsupported model type, rope type, activation or switch; a missing or impossible
        value. The message names the key.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = did_you_mean(str(model_type), FAMILIES)
        raise UserError(f"config.json: model_type {model_type!r} is not supported. {known}")
    if config.get("quantization_config"):
        raise UserError(
            "config.json: quantization_config: quantised checkpoints are not read; allowed: "
            "float32, float16 and bfloat16 weights"
        )
    cfg = FAMILIES[model_type](config)
    if cfg.heads % cfg.kv_heads:
        raise UserError(
            f"config.json: num_key_value_heads {cfg.kv_heads} does not divide "
            f"num_attention_heads {cfg.heads}"
        )
    return cfg


def text_config(config: Config) -> dict[str, Any]:
    """The part of a config.json that describes the language model, with its own `model_type`.

    Args:
      config: the parsed file.
    Returns:
      A copy; for multimodal Gemma 3 its `text_config`, as a file of its own would say it.
    Raises:
      UserError: multimodal without `text_config`.
    """
    if config.get("model_type") != "gemma3":
        return dict(config)
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        raise UserError("config.json: model_type 'gemma3' needs text_config, a dictionary")
    shared = {key: config[key] for key in ("dtype", "torch_dtype") if key in config}
    own = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    tied = {"tie_word_embeddings": config.get("tie_word_embeddings", True)}
    return {**shared, **tied, **inner, **own}


def _llama(config: Config) -> DecoderConfig:
    bias = hf.flag(config, "attention_bias")
    return _decoder(config, qkv_bias=bias, o_bias=bias, mlp_bias=hf.flag(config, "mlp_bias"))


def _mistral(config: Config) -> DecoderConfig:
    config = {"num_key_value_heads": 8, "sliding_window": 4096, **config}
    return _decoder(config, layer_window=_every_layer(config))


def _qwen2(config: Config) -> DecoderConfig:
    return _decoder(config, qkv_bias=True, layer_window=_qwen_windows(config))


def _qwen3(config: Config) -> DecoderConfig:
    bias, windows = hf.flag(config, "attention_bias"), _qwen_windows(config)
    config = {"head_dim": 128, **config}
    return _decoder(config, qk_norm=True, qkv_bias=bias, o_bias=bias, layer_window=windows)


def _qwen_windows(config: Config) -> tuple[int, ...]:
    if not hf.flag(config, "use_sliding_window"):
        config = {**config, "sliding_window": None}
    first = config.get("max_window_layers", 28)
    return hf.windows({"sliding_window": 4096, **config}, lambda layer: layer >= first)


def _every_layer(config: Config) -> tuple[int, ...]:
    return hf.windows({**config, "layer_types": None}, lambda layer: True)


def _phi3(config: Config) -> DecoderConfig:
    config = {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096, **config}
    for key in ("rope_scaling", "rope_parameters"):
        given = hf.section(config, key)
        # the first Phi-3 files called LongRoPE by the names of its predecessors
        if given.get("rope_type", given.get("type")) in ("su", "yarn"):
            config[key] = {**given, "rope_type": "longrope"}
    return _decoder(config, partial=1.0, layer_window=_every_layer(config))


def _gemma2(config: Config) -> DecoderConfig:
    config = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **config}
    attn_softcap = hf.cap(config, "attn_logit_softcapping")
    return _gemma(config, lambda layer: layer % 2 == 0, attn_softcap=attn_softcap)


def _gemma3(config: Config) -> DecoderConfig:
    config = {"vocab_size": 262208, "max_position_embeddings": 131072, **text_config(config)}
    hf.refuse(config, "attn_logit_softcapping", "Gemma 3 has no soft cap inside attention")
    period = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    config = {**GEMMA_DEFAULTS, **config}
    slides = hf.sliding(config, lambda layer: (layer + 1) % period != 0)
    nested = hf.section(config, "rope_parameters")
    full = {**hf.section(nested, "full_attention"), **hf.section(config, "rope_scaling")}
    local = {"rope_theta": config.get("rope_local_base_freq"), "rope_scaling": None}
    local["rope_parameters"] = hf.section(nested, "sliding_attention")
    ropes = (
        hf.rope_table({**config, "rope_scaling": None, "rope_parameters": full}, theta=1e6),
        hf.rope_table({**config, **local}, theta=1e4),
    )
    layer_rope = tuple(int(here) for here in slides)
    return _gemma(config, slides.__getitem__, qk_norm=True, ropes=ropes, layer_rope=layer_rope)


def _gemma(config: Config, slides: Callable[[int], bool], **switches: Any) -> DecoderConfig:
    hf.refuse(config, "use_bidirectional_attention", "attention must be causal")
    config = {**GEMMA_DEFAULTS, **config}
    bias = hf.flag(config, "attention_bias")
    return _decoder(
        config,
        norm="rms_plus_one",
        out_norms=True,
        activation=hf.activation(config, "hidden_activation"),
        embed_scale=hf.size(config, "hidden_size") ** 0.5,
        attn_scale=hf.number(config, "query_pre_attn_scalar") ** -0.5,
        final_softcap=hf.cap(config, "final_logit_softcapping"),
        qkv_bias=bias,
        o_bias=bias,
        layer_window=hf.windows(config, slides),
        **switches,
    )


def _phi(config: Config) -> DecoderConfig:
    hf.refuse(config, "qk_layernorm", "norms on queries and keys are not supported for Phi")
    return _decoder(
        {"hidden_act": "gelu_new", **config},
        partial=0.5,
        **LAYER_NORM,
        parallel=True,
        shared_norm=True,
        head_bias=True,
        qkv_bias=True,
        o_bias=True,
    )


def _gpt_neox(config: Config) -> DecoderConfig:
    bias = hf.flag(config, "attention_bias", True)
    # its older files have names of their own for the rotary parameters
    renamed = {"rope_theta": config.get("rotary_emb_base"), "hidden_act": "gelu"}
    return _decoder(
        {**renamed, **config, "num_key_value_heads": None},
        partial=hf.number(config, "rotary_pct", 0.25),
        **LAYER_NORM,
        parallel=hf.flag(config, "use_parallel_residual", True),
        qkv_bias=bias,
        o_bias=bias,
    )


def _gpt2(config: Config) -> DecoderConfig:
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        hf.refuse(config, key, "not supported for GPT-2")
    renamed = {ours: config[theirs] for ours, theirs in GPT2_NAMES.items() if theirs in config}
    config = {"tie_word_embeddings": True, "activation_function": "gelu_new", **config, **renamed}
    config["intermediate_size"] = hf.size(config, "n_inner", 4 * hf.size(config, "hidden_size"))
    scale = {} if hf.flag(config, "scale_attn_weights", True) else {"attn_scale": 1.0}
    return _decoder(
        config,
        **LAYER_NORM,
        activation=hf.activation(config, "activation_function"),
        qkv_bias=True,
        o_bias=True,
        learned_positions=True,
        ropes=(),
        **scale,
    )


LAYER_NORM = {"norm": "layer", "gated": False, "mlp_bias": True}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
}
# multimodal files leave out what equals transformers' defaults
GEMMA_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

FAMILIES: dict[str, Callable[[Config], DecoderConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gemma3": _gemma3,
    "phi": _phi,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}


def _decoder(config: Config, *, partial: float | None = None, **switches: Any) -> DecoderConfig:
    """What all families share; `switches` say what differs."""
    width, heads = hf.size(config, "hidden_size"), hf.size(config, "num_attention_heads")
    layers = hf.size(config, "num_hidden_layers")
    if config.get("head_dim") is None and width % heads:
        raise UserError(
            f"config.json: num_attention_heads {heads} does not divide hidden_size {width}"
        )
    head_dim = hf.size(config, "head_dim", width // heads)
    layer_norm = switches.get("norm") == "layer"
    eps_key, eps = ("layer_norm_eps", 1e-5) if layer_norm else ("rms_norm_eps", 1e-6)
    if "ropes" not in switches:
        switches["ropes"] = (hf.rope_table(config, partial=partial),)
    if "activation" not in switches:
        switches["activation"] = hf.activation({"hidden_act": "silu", **config}, "hidden_act")
    context = hf.size(config, "max_position_embeddings")
    for table in switches["ropes"]:
        # beyond it LongRoPE changes every frequency, those of earlier positions included
        context = min(context, table.original) if table.kind == "longrope" else context
    shared = {
        "family": config["model_type"],
        "vocab_size": hf.size(config, "vocab_size"),
        "hidden_size": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": hf.size(config, "num_key_value_heads", heads),
        "head_dim": head_dim,
        "mlp_size": hf.size(config, "intermediate_size"),
        "max_positions": context,
        "norm_eps": hf.number(config, eps_key, eps),
        "tied": hf.flag(config, "tie_word_embeddings"),
        "attn_scale": head_dim**-0.5,
        "layer_rope": (0,) * layers,
        "layer_window": (0,) * layers,
        "init_std": hf.number(config, "initializer_range", 0.02),
    }
    return DecoderConfig(**{**shared, **switches})
