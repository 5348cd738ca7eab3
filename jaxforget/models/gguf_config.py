"""Metadata of a GGUF file -> the config.json that the same model has on Hugging Face."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.models.rope import Rope

REQUIRED = object()  # default of a key that must be present
LOW, HIGH = 1.0, 4.0  # of Llama 3's rotary rule in every published model


@dataclass(frozen=True)
class Metadata:
    """The key-value part of a GGUF file and the names of its tensors.

    Attributes:
      path: of the file, for messages.
      values: every key with its value; arrays are lists.
      vocab: rows of the embedding.
      tied: there is no output projection but the embedding.
      tensors: names of all tensors.
      rope: tensors of rotary factors by name, float32; empty for most models.
    """

    path: str
    values: Mapping[str, Any]
    vocab: int
    tied: bool
    tensors: Collection[str]
    rope: Mapping[str, np.ndarray]

    @property
    def arch(self) -> str:
        """The architecture, as GGUF names it."""
        return str(self.values.get("general.architecture"))

    def own(self, key: str, default: Any = REQUIRED) -> Any:
        """Number, string or flag under "<architecture>.<key>".

        Raises:
          UserError: a required key is missing, or differs from layer to layer.
        """
        value = self.values.get(f"{self.arch}.{key}", default)
        if value is REQUIRED:
            raise UserError(f"{self.path}: metadata key {self.arch}.{key} is missing")
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise UserError(
                    f"{self.path}: {self.arch}.{key} differs between layers, which is not supported"
                )
            value = value[0]
        # float32 0.00001 would otherwise become 9.99999974e-06
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def biased(self, *modules: str) -> bool:
        """Has any of these parts of the first layer a bias?"""
        return any(f"blk.0.{module}.bias" in self.tensors for module in modules)


def hf_config(meta: Metadata) -> dict[str, Any]:
    """The content of the equivalent config.json, in the spelling old and new transformers read.

    Args:
      meta: of the file.
    Returns:
      Dictionary without "dtype".
    Raises:
      UserError: an architecture or feature that is not supported, or a missing key.
    """
    if meta.arch not in ARCHITECTURES:
        raise UserError(
            f"{meta.path}: architecture {meta.arch!r} is not supported. "
            f"{did_you_mean(meta.arch, ARCHITECTURES)}"
        )
    if meta.own("expert_count", 0):
        raise UserError(f"{meta.path}: mixtures of experts are not supported")
    config = ARCHITECTURES[meta.arch](meta)
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = meta.values.get(f"tokenizer.ggml.{key}_token_id")
        # null, not absent: transformers' defaults may lie outside the vocabulary
        config[f"{name}_token_id"] = None if token is None else int(token)
    return config


def _shared(meta: Metadata, model_type: str, class_name: str) -> dict[str, Any]:
    """What every family but GPT-2 spells alike."""
    heads = meta.own("attention.head_count")
    return {
        "architectures": [f"{class_name}ForCausalLM"],
        "model_type": model_type,
        "vocab_size": meta.vocab,
        "hidden_size": meta.own("embedding_length"),
        "intermediate_size": meta.own("feed_forward_length"),
        "num_hidden_layers": meta.own("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.own("attention.head_count_kv", heads),
        "max_position_embeddings": meta.own("context_length"),
        "tie_word_embeddings": meta.tied,
    }


def _rms(meta: Metadata, model_type: str, class_name: str, theta: float = 1e4) -> dict[str, Any]:
    config = _shared(meta, model_type, class_name)
    whole = config["hidden_size"] // config["num_attention_heads"]
    config["head_dim"] = meta.own("attention.key_length", whole)
    if meta.own("attention.value_length", config["head_dim"]) != config["head_dim"]:
        raise UserError(f"{meta.path}: keys and values of different length are not supported")
    config["rms_norm_eps"] = meta.own("attention.layer_norm_rms_epsilon")
    config["rope_theta"] = float(meta.own("rope.freq_base", theta))
    scaling = _rope_scaling(meta, config)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _rope_scaling(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any] | None:
    if "rope_freqs" in meta.rope:
        return _llama3_scaling(meta, config)
    if "rope_factors_short" in meta.rope:
        sides = {side: meta.rope[f"rope_factors_{side}"].tolist() for side in ("short", "long")}
        factors = {f"{side}_factor": values for side, values in sides.items()}
        return {"type": "longrope", "rope_type": "longrope", **factors}
    kind = meta.own("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise UserError(f"{meta.path}: rope.scaling.type {kind!r}: allowed: none, linear")
    return {
        "type": "linear",
        "rope_type": "linear",
        "factor": float(meta.own("rope.scaling.factor")),
    }


def _llama3_scaling(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF stores the divisors that Llama 3's rule gives, not the rule: find it again."""
    divisors = meta.rope["rope_freqs"].astype(np.float64)
    theta, factor = config["rope_theta"], float(np.round(divisors.max(), 3))
    plain = Rope(theta, 2 * len(divisors)).frequencies().astype(np.float64)
    # the divisors between 1 and the factor tell the context the rule was made for
    between = (divisors > 1.0 + 1e-4) & (divisors < factor * (1 - 1e-4))
    smooth = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
    contexts = (LOW + (HIGH - LOW) * smooth) * 2 * np.pi / plain[between]
    original = int(np.round(np.median(contexts))) if contexts.size else 8192
    table = Rope(theta, 2 * len(divisors), "llama3", factor, LOW, HIGH, original)
    if not np.allclose(plain / table.frequencies(), divisors, rtol=1e-3):
        raise UserError(f"{meta.path}: tensor rope_freqs.weight does not follow Llama 3's rule")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
    }


def _llama(meta: Metadata) -> dict[str, Any]:
    # also Mistral, whose window the format does not record
    return _rms(meta, "llama", "Llama") | {
        "attention_bias": meta.biased("attn_q"),
        "mlp_bias": meta.biased("ffn_down"),
    }


def _qwen2(meta: Metadata) -> dict[str, Any]:
    return _rms(meta, "qwen2", "Qwen2") | {"use_sliding_window": False}


def _qwen3(meta: Metadata) -> dict[str, Any]:
    extra = {"use_sliding_window": False, "attention_bias": meta.biased("attn_q")}
    return _rms(meta, "qwen3", "Qwen3") | extra


def _gemma(meta: Metadata, config: dict[str, Any], largest: int) -> dict[str, Any]:
    # GGUF leaves the scale of attention to the reader: per head, but in the largest model
    whole = config["hidden_size"] // config["num_attention_heads"]
    per_head = whole if config["num_hidden_layers"] == largest else config["head_dim"]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": per_head,
        "sliding_window": meta.own("attention.sliding_window", None),
        "attn_logit_softcapping": meta.own("attn_logit_softcapping", None),
        "final_logit_softcapping": meta.own("final_logit_softcapping", None),
    }


def _gemma2(meta: Metadata) -> dict[str, Any]:
    return _gemma(meta, _rms(meta, "gemma2", "Gemma2"), largest=46)


def _gemma3(meta: Metadata) -> dict[str, Any]:
    config = _gemma(meta, _rms(meta, "gemma3_text", "Gemma3", theta=1e6), largest=62)
    period = meta.own("attention.sliding_window_pattern", 6)
    return config | {
        "rope_local_base_freq": float(meta.own("rope.freq_base_swa", 1e4)),
        "sliding_window_pattern": period,
        "layer_types": [
            "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
            for layer in range(config["num_hidden_layers"])
        ],
    }


def _rotary_fraction(meta: Metadata, config: Mapping[str, Any]) -> float:
    whole = config["hidden_size"] // config["num_attention_heads"]
    return meta.own("rope.dimension_count", whole) / whole


def _layer_norm(meta: Metadata, model_type: str, class_name: str) -> dict[str, Any]:
    return _shared(meta, model_type, class_name) | {
        "layer_norm_eps": meta.own("attention.layer_norm_epsilon"),
        "rope_theta": float(meta.own("rope.freq_base", 1e4)),
    }


def _phi2(meta: Metadata) -> dict[str, Any]:
    config = _layer_norm(meta, "phi", "Phi")
    fraction = _rotary_fraction(meta, config)
    return config | {"hidden_act": "gelu_new", "partial_rotary_factor": fraction}


def _phi3(meta: Metadata) -> dict[str, Any]:
    config = _rms(meta, "phi3", "Phi3")
    del config["head_dim"]  # transformers derives it
    context = config["max_position_embeddings"]
    return config | {
        "partial_rotary_factor": _rotary_fraction(meta, config),
        "sliding_window": meta.own("attention.sliding_window", None) or None,
        "original_max_position_embeddings": meta.own(
            "rope.scaling.original_context_length", context
        ),
    }


def _gptneox(meta: Metadata) -> dict[str, Any]:
    config = _layer_norm(meta, "gpt_neox", "GPTNeoX")
    theta = config.pop("rope_theta")
    del config["num_key_value_heads"]
    return config | {
        "hidden_act": "gelu",
        "rotary_pct": _rotary_fraction(meta, config),
        "rotary_emb_base": theta,
        "attention_bias": meta.biased("attn_qkv"),
        "use_parallel_residual": bool(meta.own("use_parallel_residual", True)),
    }


def _gpt2(meta: Metadata) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": meta.vocab,
        "n_positions": meta.own("context_length"),
        "n_embd": meta.own("embedding_length"),
        "n_layer": meta.own("block_count"),
        "n_head": meta.own("attention.head_count"),
        "n_inner": meta.own("feed_forward_length"),
        "layer_norm_epsilon": meta.own("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": meta.tied,
    }


ARCHITECTURES: dict[str, Callable[[Metadata], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi2": _phi2,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
}
