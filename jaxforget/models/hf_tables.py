"""Which Hugging Face tensor is which of our parameters: one table per family, read both ways.

An entry pairs one stored tensor with one or more of our paths. "{}" in its name is the layer;
such paths are stacked and begin with "layers/".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxforget.models.config import DecoderConfig, param_shapes

type Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Form:
    """How one stored tensor holds some of our arrays; `pack` is the exact inverse of `unpack`.

    Attributes:
      unpack: (stored tensor, cfg) -> our arrays.
      pack: (our arrays, cfg) -> stored tensor.
    """

    unpack: Callable[[np.ndarray, DecoderConfig], Arrays]
    pack: Callable[[Arrays, DecoderConfig], np.ndarray]


@dataclass(frozen=True)
class Entry:
    """One stored tensor (per layer).

    Attributes:
      name: as transformers writes it.
      paths: our leaves inside it, in the order of `form`.
      form: see `Form`.
      older: other names of the same tensor in published files.
    """

    name: str
    paths: tuple[str, ...]
    form: Form
    older: tuple[str, ...] = ()

    @property
    def stacked(self) -> bool:
        """Is there one such tensor per layer?"""
        return "{}" in self.name


@dataclass(frozen=True)
class Table:
    """All tensors of a family.

    Attributes:
      prefix: the base model's name with its dot; published files also go without it.
      entries: every tensor the family may have; a config has those whose paths it has.
      older_prefixes: further spellings of `prefix`.
    """

    prefix: str
    entries: tuple[Entry, ...]
    older_prefixes: tuple[str, ...] = ()


def _rows(array: np.ndarray, cfg: DecoderConfig) -> Arrays:
    q, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    return np.split(array, [q, q + kv])


def _per_head(array: np.ndarray, cfg: DecoderConfig) -> Arrays:
    heads = array.reshape(cfg.heads, 3, cfg.head_dim, *array.shape[1:])
    return [heads[:, i].reshape(-1, *array.shape[1:]) for i in range(3)]


def _join_heads(arrays: Arrays, cfg: DecoderConfig) -> np.ndarray:
    heads = [a.reshape(cfg.heads, cfg.head_dim, *a.shape[1:]) for a in arrays]
    return np.stack(heads, axis=1).reshape(-1, *arrays[0].shape[1:])


def _transposed(arrays: Arrays) -> Arrays:
    return [a.T for a in arrays]


SAME = Form(lambda a, cfg: [a], lambda a, cfg: a[0])
TRANSPOSED = Form(lambda a, cfg: [a.T], lambda a, cfg: a[0].T)
# queries, keys, values one behind the other, in rows of an [out, in] matrix
QKV_ROWS = Form(
    lambda a, cfg: _transposed(_rows(a, cfg)),
    lambda a, cfg: np.concatenate(_transposed(a)),
)
# the same in columns of an [in, out] matrix, and as a bias
QKV_COLUMNS = Form(
    lambda a, cfg: _transposed(_rows(a.T, cfg)), lambda a, cfg: np.concatenate(a, axis=-1)
)
QKV_BIAS = Form(_rows, lambda a, cfg: np.concatenate(a))
# head by head: its query, its key, its value
QKV_HEADS = Form(
    lambda a, cfg: _transposed(_per_head(a, cfg)),
    lambda a, cfg: _join_heads(_transposed(a), cfg),
)
QKV_HEADS_BIAS = Form(_per_head, _join_heads)
GATE_UP = Form(
    lambda a, cfg: _transposed(np.split(a, 2)), lambda a, cfg: np.concatenate(_transposed(a))
)


def _qkv(leaf: str) -> tuple[str, ...]:
    return tuple(f"layers/attn/{part}/{leaf}" for part in "qkv")


def _linear(name: str, path: str, form: Form = TRANSPOSED) -> tuple[Entry, ...]:
    return (
        Entry(f"{name}.weight", (f"{path}/w",), form),
        Entry(f"{name}.bias", (f"{path}/b",), SAME),
    )


def _norm(name: str, path: str) -> tuple[Entry, ...]:
    return (
        Entry(f"{name}.weight", (f"{path}/scale",), SAME),
        Entry(f"{name}.bias", (f"{path}/bias",), SAME),
    )


def _llama_layer(second_norm: str = "post_attention_layernorm") -> tuple[Entry, ...]:
    attention, mlp = "layers.{}.self_attn", "layers.{}.mlp"
    return (
        *_norm("layers.{}.input_layernorm", "layers/attn_norm"),
        *_norm(f"layers.{{}}.{second_norm}", "layers/mlp_norm"),
        *(e for p in "qkvo" for e in _linear(f"{attention}.{p}_proj", f"layers/attn/{p}")),
        *(e for p in "qk" for e in _norm(f"{attention}.{p}_norm", f"layers/attn/{p}_norm")),
        *(
            entry
            for part in ("gate", "up", "down")
            for entry in _linear(f"{mlp}.{part}_proj", f"layers/mlp/{part}")
        ),
    )


EMBED = Entry("embed_tokens.weight", ("embed/w",), SAME)
HEAD = _linear("lm_head", "head", SAME)

LLAMA = Table("model.", (EMBED, *_llama_layer(), *_norm("norm", "final_norm"), *HEAD))
GEMMA = Table(
    "model.",
    (
        EMBED,
        *_llama_layer("pre_feedforward_layernorm"),
        *_norm("layers.{}.post_attention_layernorm", "layers/attn_out_norm"),
        *_norm("layers.{}.post_feedforward_layernorm", "layers/mlp_out_norm"),
        *_norm("norm", "final_norm"),
        *HEAD,
    ),
    older_prefixes=("model.language_model.", "language_model.model."),
)
PHI = Table(
    "model.",
    (
        EMBED,
        *_norm("layers.{}.input_layernorm", "layers/attn_norm"),
        *(
            entry
            for part in "qkv"
            for entry in _linear(f"layers.{{}}.self_attn.{part}_proj", f"layers/attn/{part}")
        ),
        *_linear("layers.{}.self_attn.dense", "layers/attn/o"),
        *_linear("layers.{}.mlp.fc1", "layers/mlp/up"),
        *_linear("layers.{}.mlp.fc2", "layers/mlp/down"),
        *_norm("final_layernorm", "final_norm"),
        *HEAD,
    ),
)
PHI3 = Table(
    "model.",
    (
        EMBED,
        *_norm("layers.{}.input_layernorm", "layers/attn_norm"),
        *_norm("layers.{}.post_attention_layernorm", "layers/mlp_norm"),
        Entry("layers.{}.self_attn.qkv_proj.weight", _qkv("w"), QKV_ROWS),
        *_linear("layers.{}.self_attn.o_proj", "layers/attn/o"),
        Entry(
            "layers.{}.mlp.gate_up_proj.weight", ("layers/mlp/gate/w", "layers/mlp/up/w"), GATE_UP
        ),
        *_linear("layers.{}.mlp.down_proj", "layers/mlp/down"),
        *_norm("norm", "final_norm"),
        *HEAD,
    ),
)
GPT2 = Table(
    "transformer.",
    (
        Entry("wte.weight", ("embed/w",), SAME),
        Entry("wpe.weight", ("embed/pos",), SAME),
        *_norm("h.{}.ln_1", "layers/attn_norm"),
        *_norm("h.{}.ln_2", "layers/mlp_norm"),
        Entry("h.{}.attn.c_attn.weight", _qkv("w"), QKV_COLUMNS),
        Entry("h.{}.attn.c_attn.bias", _qkv("b"), QKV_BIAS),
        *_linear("h.{}.attn.c_proj", "layers/attn/o", SAME),
        *_linear("h.{}.mlp.c_fc", "layers/mlp/up", SAME),
        *_linear("h.{}.mlp.c_proj", "layers/mlp/down", SAME),
        *_norm("ln_f", "final_norm"),
        *HEAD,
    ),
)
GPT_NEOX = Table(
    "gpt_neox.",
    (
        Entry("embed_in.weight", ("embed/w",), SAME),
        *_norm("layers.{}.input_layernorm", "layers/attn_norm"),
        *_norm("layers.{}.post_attention_layernorm", "layers/mlp_norm"),
        Entry("layers.{}.attention.query_key_value.weight", _qkv("w"), QKV_HEADS),
        Entry("layers.{}.attention.query_key_value.bias", _qkv("b"), QKV_HEADS_BIAS),
        *_linear("layers.{}.attention.dense", "layers/attn/o"),
        *_linear("layers.{}.mlp.dense_h_to_4h", "layers/mlp/up"),
        *_linear("layers.{}.mlp.dense_4h_to_h", "layers/mlp/down"),
        *_norm("final_layer_norm", "final_norm"),
        Entry("embed_out.weight", ("head/w",), SAME, older=("lm_head.weight",)),
    ),
)

TABLES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi": PHI,
    "phi3": PHI3,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
}
HEADS = ("lm_head.", "embed_out.")  # outside the base model, so without its prefix
HEAD_NAMES = ("lm_head.weight", "embed_out.weight")

# stored by older versions of transformers, computed by newer ones
BUFFERS = (
    r"\.(attn|attention)\.(bias|masked_bias)$",
    r"(^|\.)rotary_emb\.inv_freq$",
    r"(^|\.)embed_scale$",
)
# the image half of multimodal Gemma 3
IMAGES = r"(^|\.)(vision_tower|multi_modal_projector)\."


def entries(cfg: DecoderConfig) -> tuple[Entry, ...]:
    """The tensors a checkpoint of this architecture has, in the order they are written."""
    shapes = param_shapes(cfg)
    return tuple(e for e in TABLES[cfg.family].entries if e.paths[0] in shapes)


def full_name(entry: Entry, cfg: DecoderConfig) -> str:
    """The name transformers writes, prefix included; "{}" still stands for the layer."""
    return _prefixed(entry.name, TABLES[cfg.family].prefix)


def spellings(entry: Entry, cfg: DecoderConfig) -> tuple[str, ...]:
    """Every name under which published files hold the tensor, the usual one first."""
    table = TABLES[cfg.family]
    prefixes = (table.prefix, "", *table.older_prefixes)
    names = (entry.name, *entry.older)
    return tuple(dict.fromkeys(_prefixed(name, prefix) for name in names for prefix in prefixes))


def _prefixed(name: str, prefix: str) -> str:
    return name if name.startswith(HEADS) else prefix + name


def stored_shape(entry: Entry, cfg: DecoderConfig) -> tuple[int, ...]:
    """Shape of the tensor in the file (of one layer)."""
    shapes = param_shapes(cfg)
    ours = [shapes[path][1:] if entry.stacked else shapes[path] for path in entry.paths]
    # one byte seen as a whole array: shapes without memory
    return entry.form.pack([np.broadcast_to(np.int8(0), shape) for shape in ours], cfg).shape
