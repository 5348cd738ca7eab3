"""Checks at the public boundary."""

from jax import Array


def check_projection(name: str, hidden: Array, weight: Array, bias: Array | None) -> None:
    """Do hidden states, weight and bias fit together?

    Args:
      name: suffix of the argument names in messages, such as "_p".
      hidden: should be `[..., T, D]`.
      weight: should be `[V, D]`.
      bias: should be `[V]` or None.
    Raises:
      ValueError: naming the argument and both shapes.
    """
    if hidden.ndim < 2:
        raise ValueError(f"hidden{name} must be [..., T, D], got shape {hidden.shape}")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight{name} must be [V, D] with D = {hidden.shape[-1]}, got shape {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias{name} must be [V] = {weight.shape[:1]}, got shape {bias.shape}")
