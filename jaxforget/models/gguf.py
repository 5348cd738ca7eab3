"""GGUF files: weights (quantised or not), architecture and tokenizer, all from one file."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params, unflatten
from jaxforget.models import families, gguf_config, gguf_tokenizer
from jaxforget.models.config import DecoderConfig, param_shapes
from jaxforget.models.tensor_files import dtype_named

TOP = {
    "token_embd.weight": "embed/w",
    "position_embd.weight": "embed/pos",
    "output_norm.weight": "final_norm/scale",
    "output_norm.bias": "final_norm/bias",
    "output.weight": "head/w",
    "output.bias": "head/b",
}
LAYER = {
    "attn_norm": "attn_norm",
    "ffn_norm": "mlp_norm",
    "post_attention_norm": "attn_out_norm",
    "post_ffw_norm": "mlp_out_norm",
    "attn_q": "attn/q",
    "attn_k": "attn/k",
    "attn_v": "attn/v",
    "attn_output": "attn/o",
    "attn_q_norm": "attn/q_norm",
    "attn_k_norm": "attn/k_norm",
    "ffn_gate": "mlp/gate",
    "ffn_up": "mlp/up",
    "ffn_down": "mlp/down",
}
ROPE = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")

type Tensors = Mapping[str, Any]


def read_gguf(
    path: str | pathlib.Path, dtype: str | None = None
) -> tuple[dict[str, Any], Params, Any]:
    """Read a model from a GGUF file.

    Args:
      path: of the file; split files are refused.
      dtype: "float32", "float16" or "bfloat16" of every leaf; None is "float32", which holds
        whatever the quantised blocks say exactly.
    Returns:
      (content of the equivalent Hugging Face config.json, parameters as nested dictionary of
      numpy arrays, transformers tokenizer or None where the file has none).
    Raises:
      UserError: damaged or no GGUF file; unsupported architecture, tensor type or tokenizer;
        tensors missing, unknown, of another shape than the metadata says, or not finite.
    """
    dtype = dtype or "float32"
    wanted = dtype_named(dtype)
    assert wanted is not None
    values, tensors = _open(str(path))
    meta = _metadata(str(path), values, tensors)
    config = gguf_config.hf_config(meta)
    try:
        cfg = families.from_hf(config)
    except UserError as error:
        raise UserError(f"{path}: its metadata as a {error}") from None
    params = _read_params(meta, cfg, tensors, wanted)
    return {**config, "dtype": dtype}, params, gguf_tokenizer.tokenizer(meta)


def _open(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    import gguf

    class Reader(gguf.GGUFReader):
        """Sees the mapped file as a plain array: its million small slices are then cheap."""

        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._plain = np.asarray(mapped)

    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        reader = Reader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the reader trusts the file, so damage surfaces as anything
        raise UserError(f"{path}: damaged, or not a GGUF file: {error}") from None
    if int(values.get("split.count", 1) or 1) > 1:
        raise UserError(f"{path}: one part of a split GGUF file; join the parts first")
    return values, {tensor.name: tensor for tensor in reader.tensors}


def _metadata(path: str, values: Mapping[str, Any], tensors: Tensors) -> gguf_config.Metadata:
    if "token_embd.weight" not in tensors:
        raise UserError(f"{path}: tensor token_embd.weight is missing")
    embedding, output = tensors["token_embd.weight"], tensors.get("output.weight")
    # some writers store a tied head a second time
    tied = output is None or (
        output.tensor_type == embedding.tensor_type and np.array_equal(output.data, embedding.data)
    )
    rope = {
        name.removesuffix(".weight"): _dequantise(path, tensors[name])
        for name in ROPE
        if name in tensors
    }
    return gguf_config.Metadata(
        path=path,
        values=values,
        vocab=int(embedding.shape[-1]),
        tied=tied,
        tensors=tensors.keys(),
        rope=rope,
    )


def _dequantise(path: str, tensor: Any) -> np.ndarray:
    """float32, in the row-major shape of the original matrix: [out, in]."""
    from gguf import quants

    try:
        array = quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise UserError(
            f"{path}: tensor {tensor.name} has type {tensor.tensor_type.name}. Allowed: F32, F16, "
            "BF16 and the quantised types (Q4_0, Q8_0, Q4_K, Q6_K, ...)."
        ) from None
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{path}: tensor {tensor.name} holds values that are NaN or infinite")
    return array


def _read_params(
    meta: gguf_config.Metadata, cfg: DecoderConfig, tensors: Tensors, wanted: np.dtype
) -> Params:
    shapes = param_shapes(cfg)
    flat = {path: np.empty(shape, wanted) for path, shape in shapes.items()}
    missing = {
        (path, layer)
        for path in shapes
        for layer in (range(cfg.layers) if path.startswith("layers/") else (None,))
    }
    for name, tensor in tensors.items():
        if name in ROPE or (name == "output.weight" and cfg.tied):
            continue
        array = _dequantise(meta.path, tensor)
        for path, layer, part in _places(name, array, meta, cfg):
            if (path, layer) not in missing:
                raise UserError(
                    f"{meta.path}: tensor {name} is unknown to a {meta.arch} model as the "
                    f"metadata describes it ({cfg.layers} layers)"
                )
            target = flat[path] if layer is None else flat[path][layer]
            if part.shape != target.shape:
                raise UserError(
                    f"{meta.path}: tensor {name} has shape {part.shape} for {path}, the "
                    f"metadata says {target.shape}"
                )
            target[...] = part
            missing.remove((path, layer))
    if missing:
        path, layer = min(missing, key=str)
        where = path if layer is None else f"{path} of layer {layer}"
        raise UserError(f"{meta.path}: no tensor for {where} ({len(missing)} missing in all)")
    return unflatten(flat)


def _places(
    name: str, array: np.ndarray, meta: gguf_config.Metadata, cfg: DecoderConfig
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """(our path, layer, array as we store it) of everything one tensor holds."""
    if name in TOP:
        yield TOP[name], None, _norm_weight(array, TOP[name], cfg)
        return
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None:
        yield name, None, array  # the caller finds it unknown
        return
    layer, module, kind = int(match[1]), match[2], match[3]
    q, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    modules = [LAYER.get(module, module)]
    parts = [array]
    if module == "attn_qkv":
        modules, parts = ["attn/q", "attn/k", "attn/v"], np.split(array, [q, q + kv])
    elif module == "ffn_up" and cfg.gated and len(array) == 2 * cfg.mlp_size:
        modules, parts = ["mlp/gate", "mlp/up"], np.split(array, 2)
    for place, part in zip(modules, parts, strict=True):
        if meta.arch == "llama" and place in ("attn/q", "attn/k"):
            part = _half_split(part, cfg)
        norm = place.endswith("norm")
        leaf = {"weight": "scale" if norm else "w", "bias": "bias" if norm else "b"}[kind]
        path = f"layers/{place}/{leaf}"
        yield path, layer, part.T if leaf == "w" else _norm_weight(part, path, cfg)


def _norm_weight(array: np.ndarray, path: str, cfg: DecoderConfig) -> np.ndarray:
    # GGUF holds the factor itself, Gemma's checkpoints its distance from 1
    return array - 1 if cfg.norm == "rms_plus_one" and path.endswith("scale") else array


def _half_split(rows: np.ndarray, cfg: DecoderConfig) -> np.ndarray:
    """Rows of rotating pairs side by side -> first halves, then second halves, per head."""
    if len(rows) % cfg.head_dim:
        return rows  # the caller reports the shape
    pairs = rows.reshape(-1, cfg.head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
