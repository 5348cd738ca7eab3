"""Norms of attention's values at the first tokens, where attention sinks form."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.types import Reference
from jaxforget.objectives.parts import Part, reference_of
from jaxforget.objectives.shares import counts, share

type Values = Literal["fixed", "reference"]
"""What the norms are drawn to: nothing (small), or those of the starting model."""


def value_norms(norms: Array, reference: Array | None = None) -> Array:
    """Mean norm of each example's first values, or their mean distance to a reference's.

    Args:
      norms: `[..., K]`, norms of K values (tokens and layers) >= 0; 0 where the example is
        shorter.
      reference: the starting model's, same shape; None: the norms themselves.
    Returns:
      float32 `[...]`; the mean is over the values there are, 0 where there are none.
    Source: Shang et al. 2025 (arXiv 2510.17021), value-norm regularisation.
    """
    norms = norms.astype(jnp.float32)
    there = (norms > 0).astype(jnp.float32)
    if reference is not None:
        norms = jnp.abs(norms - jax.lax.stop_gradient(reference.astype(jnp.float32)))
    return (norms * there).sum(-1) / jnp.maximum(there.sum(-1), 1.0)


def value_part(
    roles: Sequence[str], kind: Values = "reference", *, layers: int = 8, positions: int = 1
) -> Part:
    """The regulariser as a term: the sum over roles of `value_norms`.

    An example counts by its labelled targets. The published "reference" compares forget examples
    with a model that was unlearned before; here the starting model stands for all roles.

    Args:
      roles: data sets.
      kind: see `Values`.
      layers: the first so many, >= 1; all where the model has fewer.
      positions: first tokens of each example, >= 1.
    Raises:
      UserError: an unknown kind.
    """
    allowed = get_args(Values.__value__)
    if kind not in allowed:
        raise UserError(f"value: {kind!r}. {did_you_mean(kind, allowed)}")

    def value(scores, reference: Reference):
        total = jnp.zeros(())
        for role in roles:
            mine, start = scores[role], None
            if kind == "reference":
                start = reference_of(reference, role, mine).values
                if start is None:
                    raise UserError(f"the reference of {role!r} holds no values; cache them first")
            total += share(value_norms(mine.values, start), mine.mask, counts(mine).tokens)
        return total, {}

    compared = {role: frozenset({"values"}) for role in roles} if kind == "reference" else {}
    return Part(tuple(roles), value, compared, values=(layers, positions))
