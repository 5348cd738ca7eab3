"""What a decoder is made of, as one frozen record of switches that every family sets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxforget.models.rope import Rope


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a decoder-only transformer; hashable, static under `jax.jit`.

    Attributes:
      family: Hugging Face `model_type`; says under which names weights are stored.
      vocab_size: V, rows of the embedding.
      hidden_size: D, width of the residual stream.
      layers: n, number of blocks.
      heads: H, query heads.
      kv_heads: KV, key and value heads; divides `heads`.
      head_dim: components of a head.
      mlp_size: F, inner width of the feed-forward part.
      max_positions: longest sequence the model was made for, tokens.
      norm: "rms", "rms_plus_one" (multiplies by 1 + scale) or "layer".
      norm_eps: added to the variance.
      activation: "silu", "gelu", "gelu_tanh" or "relu".
      gated: activation(gate) * up instead of activation(up).
      parallel: attention and feed-forward both read the block's input.
      shared_norm: they also share one norm.
      out_norms: further norms behind attention and feed-forward (Gemma 2 and 3).
      qk_norm: norms on each query and key head.
      qkv_bias, o_bias, mlp_bias, head_bias: which projections have biases.
      learned_positions: an embedding per position is added to the tokens' (GPT-2).
      tied: logits use the embedding; there is no head of its own.
      embed_scale: multiplies embeddings; 1.0 leaves them.
      attn_scale: multiplies query-key products.
      attn_softcap, final_softcap: products and logits become cap * tanh(x / cap); None: unchanged.
      ropes: tables of rotary frequencies; empty where positions are learned.
      layer_rope: which table each layer uses, `layers` indices.
      layer_window: how many tokens back, itself included, each layer sees; 0 is unlimited.
      init_std: standard deviation of random matrices.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    max_positions: int
    norm: str = "rms"
    norm_eps: float = 1e-6
    activation: str = "silu"
    gated: bool = True
    parallel: bool = False
    shared_norm: bool = False
    out_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    learned_positions: bool = False
    tied: bool = False
    embed_scale: float = 1.0
    attn_scale: float = 1.0
    attn_softcap: float | None = None
    final_softcap: float | None = None
    ropes: tuple[Rope, ...] = ()
    layer_rope: tuple[int, ...] = ()
    layer_window: tuple[int, ...] = ()
    init_std: float = 0.02

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "DecoderConfig":
        """Read the content of a Hugging Face config.json; see `families.from_hf`."""
        return from_hf(config)

    @property
    def windowed(self) -> bool:
        """Does any layer see only a window?"""
        return any(self.layer_window)


def from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """Read the content of a Hugging Face config.json; see `families.from_hf`."""
    from jaxforget.models import families  # families builds DecoderConfig, so it imports this file

    return families.from_hf(config)


def param_shapes(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, keyed by path; leaves under "layers/" are stacked on axis 0."""
    heads, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    d, f, v = cfg.hidden_size, cfg.mlp_size, cfg.vocab_size
    layer = {
        **_norm("attn_norm", d, cfg),
        **_linear("attn/q", d, heads, cfg.qkv_bias),
        **_linear("attn/k", d, kv, cfg.qkv_bias),
        **_linear("attn/v", d, kv, cfg.qkv_bias),
        **_linear("attn/o", heads, d, cfg.o_bias),
        **_linear("mlp/up", d, f, cfg.mlp_bias),
        **_linear("mlp/down", f, d, cfg.mlp_bias),
    }
    if cfg.gated:
        layer |= _linear("mlp/gate", d, f, cfg.mlp_bias)
    if cfg.qk_norm:
        layer |= _norm("attn/q_norm", cfg.head_dim, cfg) | _norm("attn/k_norm", cfg.head_dim, cfg)
    if not cfg.shared_norm:
        layer |= _norm("mlp_norm", d, cfg)
    if cfg.out_norms:
        layer |= _norm("attn_out_norm", d, cfg) | _norm("mlp_out_norm", d, cfg)
    shapes: dict[str, tuple[int, ...]] = {"embed/w": (v, d), **_norm("final_norm", d, cfg)}
    if cfg.learned_positions:
        shapes["embed/pos"] = (cfg.max_positions, d)
    if not cfg.tied:
        shapes["head/w"] = (v, d)
    if cfg.head_bias:
        shapes["head/b"] = (v,)
    shapes |= {f"layers/{path}": (cfg.layers, *shape) for path, shape in layer.items()}
    return dict(sorted(shapes.items()))


FEW_LAYERS = 8
"""Layers up to which they are written out one after the other, so that compilers leave out what
nobody reads: below the first that is trained no backward pass, and of the last one, computed at
labelled places alone, the others' queries and feed-forward parts. More are looped over, which
compiles one body; one layer's share is then too little to be worth a copy of all the others'."""

FEW_PLACES = 0.8
"""Labelled places are taken alone up to this share of all places."""


def products_per_token(cfg: DecoderConfig, labelled: float, length: float) -> float:
    """Multiplications of one real token on its way forward; a backward pass takes twice as many.

    Args:
      cfg: architecture.
      labelled: share of tokens that are labelled targets; only these go through the head, and, in
        models of `FEW_LAYERS`, through what asks and feeds forward in the last one.
      length: mean tokens of an example; each attends to half of it on average.
    """
    stacked = {
        path: math.prod(shape)
        for path, shape in param_shapes(cfg).items()
        if path.startswith("layers/") and path.endswith("/w")
    }
    blocks: float = sum(stacked.values())
    if cfg.layers <= FEW_LAYERS and labelled <= FEW_PLACES:  # the last one's others are only seen
        seen = sum(stacked[f"layers/attn/{name}/w"] for name in "kv")
        blocks -= (1 - labelled) * (blocks - seen) / cfg.layers
    attention = 2 * cfg.layers * cfg.heads * cfg.head_dim * length / 2
    return blocks + labelled * cfg.vocab_size * cfg.hidden_size + attention


def _linear(path: str, inner: int, outer: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{path}/w": (inner, outer)} | ({f"{path}/b": (outer,)} if bias else {})


def _norm(path: str, width: int, cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    bias = {f"{path}/bias": (width,)} if cfg.norm == "layer" else {}
    return {f"{path}/scale": (width,)} | bias
