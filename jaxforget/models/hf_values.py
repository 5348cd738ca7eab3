"""Typed reading of single values of a Hugging Face config.json; every error names the key."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.models import rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

type Config = Mapping[str, Any]


def size(config: Config, key: str, default: int | None = None) -> int:
    """An integer >= 1; `default` where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"config.json: {key} must be an integer >= 1, got {value!r}")
    return value


def number(config: Config, key: str, default: float | None = None) -> float:
    """A number > 0; `default` where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"config.json: {key} must be a number > 0, got {value!r}")
    return float(value)


def cap(config: Config, key: str) -> float | None:
    """A number > 0, or None where the key is absent or null."""
    return None if config.get(key) is None else number(config, key)


def flag(config: Config, key: str, default: bool = False) -> bool:
    """True or false; `default` where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise UserError(f"config.json: {key} must be true or false, got {value!r}")
    return value


def section(config: Config, key: str) -> Mapping[str, Any]:
    """A dictionary; empty where the key is absent or null."""
    value = config.get(key)
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise UserError(f"config.json: {key} must be a dictionary, got {value!r}")
    return value


def activation(config: Config, key: str) -> str:
    """Our name of an activation; the key must be present."""
    name = config.get(key)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"config.json: {key} {name!r}: {did_you_mean(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refuse(config: Config, key: str, why: str) -> None:
    """Error if a switch that is not supported is on."""
    if config.get(key):
        raise UserError(f"config.json: {key} {config[key]!r}: {why}")


def sliding(config: Config, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Which layers see a window only: `layer_types` where given, else `default(layer)`."""
    layers = size(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(default(layer) for layer in range(layers))
    allowed = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list | tuple) or len(kinds) != layers or set(kinds) - set(allowed):
        raise UserError(
            f"config.json: layer_types must name {' or '.join(allowed)} for each of the {layers} "
            f"layers, got {kinds!r}"
        )
    return tuple(kind == "sliding_attention" for kind in kinds)


def windows(config: Config, default: Callable[[int], bool]) -> tuple[int, ...]:
    """Window of every layer in tokens, 0 where it sees everything; see `sliding`."""
    slides = sliding(config, default)
    if config.get("sliding_window") is None:
        return (0,) * len(slides)
    return tuple(size(config, "sliding_window") * here for here in slides)


def rope_table(config: Config, *, theta: float = 1e4, partial: float | None = None) -> rope.Rope:
    """The rotary table of a config with one.

    Args:
      config: the parsed file.
      theta: base period where the file has none.
      partial: fraction of the head that rotates where the file has none; None: such heads always
        rotate whole and any other fraction is an error.
    """
    where = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    fraction = number(config, "partial_rotary_factor", partial or 1.0)
    given = {"partial_rotary_factor": fraction, **section(config, where)}
    if partial is None and given["partial_rotary_factor"] != 1.0:
        raise UserError(
            f"config.json: partial_rotary_factor {given['partial_rotary_factor']} is not supported "
            f"for model_type {config['model_type']!r}; allowed: 1.0"
        )
    whole = size(config, "hidden_size") // size(config, "num_attention_heads")
    before = config.get("original_max_position_embeddings")
    return rope.from_hf(
        given,
        where=where,
        head_dim=size(config, "head_dim", whole),
        theta=number(config, "rope_theta", theta),
        context=size(config, "max_position_embeddings"),
        original=None if before is None else size(config, "original_max_position_embeddings"),
    )
