"""Writes tests/golden/models: a tiny random checkpoint per family with PyTorch's logits.

Needs torch and transformers; see README.md beside this file for how to rerun it.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers

OUT = pathlib.Path(__file__).parent / "models"
VOCAB, LENGTHS = 96, (24, 17)
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR_GLOBAL = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 3.0],
    "long_factor": [2.0, 4.0, 8.0],
    "partial_rotary_factor": 0.75,
}
LONG_SIZES = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}
CASES = {
    "llama": ("Llama", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama32": ("Llama", {**GROUPED, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "smollm2": (
        "Llama",
        {
            **GROUPED,
            "hidden_size": 36,
            "num_attention_heads": 6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 7, "head_dim": 6}),
    "qwen2": (
        "Qwen2",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 12, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2",
        {
            **GROUPED,
            "num_hidden_layers": 3,
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3_text": (
        "Gemma3Text",
        {
            **GROUPED,
            "num_hidden_layers": 7,
            "head_dim": 8,
            "query_pre_attn_scalar": 20,
            "sliding_window": 6,
            "rope_parameters": LINEAR_GLOBAL,
        },
    ),
    "phi": ("Phi", {**SIZES, "rope_parameters": {"partial_rotary_factor": 0.5}}),
    "phi3": ("Phi3", {**GROUPED, "sliding_window": 11}),
    "phi3_long": ("Phi3", {**GROUPED, **LONG_SIZES, "rope_parameters": LONG}),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("GPTNeoX", {**SIZES, "rope_parameters": {"partial_rotary_factor": 0.25}}),
    "gpt_neox_sequential": (
        "GPTNeoX",
        {
            **SIZES,
            "use_parallel_residual": False,
            "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 5000.0},
        },
    ),
}
GRADIENTS = {
    "llama": ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"),
    "gemma2": ("model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.k_proj.weight"),
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough, and norms and biases odd enough, that no mistake hides."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        one_dimensional = weight.ndim == 1
        is_scale = one_dimensional and name.endswith("weight")
        plus_one = "gemma" in model.config.model_type
        centre = 1.0 if is_scale and not plus_one else 0.0
        with torch.no_grad():
            weight.copy_(centre + (0.3 if one_dimensional else 0.25) * noise)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two right-padded rows of tokens and their attention mask."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCAB, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    return torch.where(mask, tokens, 0), mask.long()


def summed_log_probability(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor):
    """Sum of log p(next token) over all pairs of real tokens."""
    logp = torch.log_softmax(logits[:, :-1], -1).gather(-1, tokens[:, 1:, None])[..., 0]
    return (logp * mask[:, 1:]).sum()


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    tokens, mask = batch()
    for seed, (case, (family, sizes)) in enumerate(CASES.items()):
        config = getattr(transformers, f"{family}Config")(**sizes)
        config._attn_implementation = "eager"
        name = "Gemma3" if family == "Gemma3Text" else family
        head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
        model = getattr(transformers, f"{name}{head}")(config).float().eval()
        randomise(model, seed)
        model.tie_weights()
        model.save_pretrained(OUT / case)
        (OUT / case / "generation_config.json").unlink(missing_ok=True)
        logits = model(tokens, attention_mask=mask, use_cache=False).logits
        expected = {"tokens": tokens, "mask": mask, "logits": logits.detach()}
        total = summed_log_probability(logits, tokens, mask)
        for path in GRADIENTS.get(case, ()):
            (gradient,) = torch.autograd.grad(total, model.get_parameter(path), retain_graph=True)
            expected[f"gradient:{path}"] = gradient
        arrays = {key: value.numpy() for key, value in expected.items()}
        np.savez_compressed(OUT / case / "expected.npz", **arrays)
        print(f"{case:22s} logit std {logits.std().item():.3f}")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}\n"
    (OUT / "VERSIONS.txt").write_text(versions)


if __name__ == "__main__":
    main()
