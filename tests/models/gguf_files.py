"""GGUF files written from the golden checkpoints, as the format's own converters lay them out."""

import json

import gguf
import numpy as np
import safetensors.numpy
from gguf import quants
from golden_models import FOLDER

NAMES = {
    "embed_tokens": "token_embd",
    "wte": "token_embd",
    "embed_in": "token_embd",
    "wpe": "position_embd",
    "norm": "output_norm",
    "final_layernorm": "output_norm",
    "final_layer_norm": "output_norm",
    "ln_f": "output_norm",
    "lm_head": "output",
    "embed_out": "output",
    "input_layernorm": "attn_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.dense": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
ARCH = {
    "mistral": "llama",
    "gemma3_text": "gemma3",
    "phi": "phi2",
    "gpt_neox": "gptneox",
}


def arch_of(config):
    return ARCH.get(config["model_type"], config["model_type"])


def metadata(config):
    """What the converters write for a config.json, without the architecture's prefix."""
    rope = config.get("rope_parameters", {})
    rope = rope.get("full_attention", rope)
    heads = config.get("num_attention_heads", config.get("n_head"))
    width = config.get("hidden_size", config.get("n_embd"))
    head_dim = config.get("head_dim", width // heads)
    values = {
        "block_count": config.get("num_hidden_layers", config.get("n_layer")),
        "context_length": config.get("max_position_embeddings", config.get("n_positions")),
        "embedding_length": width,
        "feed_forward_length": config.get("intermediate_size", 4 * width),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads", heads),
    }
    if "rms_norm_eps" in config:
        values["attention.layer_norm_rms_epsilon"] = float(config["rms_norm_eps"])
    else:
        eps = config.get("layer_norm_eps", config.get("layer_norm_epsilon"))
        values["attention.layer_norm_epsilon"] = float(eps)
    if "head_dim" in config:
        values |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if rope:
        values["rope.freq_base"] = float(rope["rope_theta"])
        values["rope.dimension_count"] = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if rope.get("rope_type") == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if config["model_type"] in ("gemma2", "gemma3_text", "phi3") and config["sliding_window"]:
        values["attention.sliding_window"] = config["sliding_window"]
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            values[key] = float(config[key])
    if "original_max_position_embeddings" in config:
        values["rope.scaling.original_context_length"] = config["original_max_position_embeddings"]
    if "use_parallel_residual" in config:
        values["use_parallel_residual"] = config["use_parallel_residual"]
    return values


def rope_tensors(config):
    rope = config.get("rope_parameters", {})
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{side}.weight": np.array(rope[f"{side}_factor"], np.float32)
            for side in ("short", "long")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    # the published rule, written by wavelengths as Llama's authors give it
    dim = config["head_dim"]
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for wave in waves:
        smooth = (context / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        divisors.append(
            1.0 if wave < context / high else factor if wave > context / low else between
        )
    return {"rope_freqs.weight": np.array(divisors, np.float32)}


def tensors(case):
    """(config, name -> float32 array in the layout of the format) of one golden checkpoint."""
    config = json.loads((FOLDER / case / "config.json").read_text())
    arch, made = arch_of(config), {}
    for name, array in safetensors.numpy.load_file(FOLDER / case / "model.safetensors").items():
        for prefix in ("model.", "transformer.", "gpt_neox."):
            name = name.removeprefix(prefix)
        parts = name.split(".")
        layer, rest = ("", parts) if parts[0] not in ("layers", "h") else (parts[1], parts[2:])
        module, kind = ".".join(rest[:-1]), rest[-1]
        target = NAMES[module]
        if arch.startswith("gemma") and module == "post_attention_layernorm":
            target = "post_attention_norm"
        if arch.startswith("gemma") and target.endswith("norm"):
            array = array + 1
        if arch == "llama" and target in ("attn_q", "attn_k"):
            heads = array.reshape(-1, 2, config["head_dim"] // 2, *array.shape[1:])
            array = heads.swapaxes(1, 2).reshape(array.shape)
        if arch == "gptneox" and target == "attn_qkv":
            heads = config["num_attention_heads"]
            split = array.reshape(heads, 3, -1, *array.shape[1:])
            array = split.swapaxes(0, 1).reshape(array.shape)
        if arch == "gpt2" and layer and array.ndim == 2:
            array = array.T
        made[f"blk.{layer}.{target}.{kind}" if layer else f"{target}.{kind}"] = array
    return config, made | rope_tensors(config)


def write(path, arch, values, arrays, *, kind=None, extra=None):
    """Write a file.

    Args:
      path: of the file.
      arch: architecture.
      values: metadata under the architecture's prefix.
      arrays: name -> float32 array.
      kind: type of all matrices; None: float32.
      extra: whole metadata keys, such as those of a tokenizer.
    """
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**{f"{arch}.{k}": v for k, v in values.items()}, **(extra or {})}.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        if kind is None or array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def golden(path, case, *, kind=None, extra=None, values=None, change=None):
    """Write a golden checkpoint as GGUF; `values` and `change(arrays)` alter it."""
    config, arrays = tensors(case)
    if change is not None:
        change(arrays)
    own = {**metadata(config), **(values or {})}
    own = {key: value for key, value in own.items() if value is not None}
    return write(path / f"{case}.gguf", arch_of(config), own, arrays, kind=kind, extra=extra)
