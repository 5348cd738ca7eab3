"""What feed-forward matrices multiply, and what a model says, read over whole sets."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.edits.material import Material
from jaxforget.edits.null_space import PRECISE
from jaxforget.edits.steering import questions
from jaxforget.engine.errors import UserError
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import ScoreFn, TokenBatch


def key_moment(
    score: ScoreFn, params: Params, frozen: Params, batches: Iterable[TokenBatch], layer: int
) -> Array:
    """E[k k^T] over every token of some texts, prompts included; k is what `mlp/down` multiplies.

    Args:
      score: the model.
      params, frozen: its leaves.
      batches: packed rows of one shape.
      layer: from 0.
    Returns:
      float32 `[F, F]`.
    Raises:
      UserError: no token.
    """

    def products(mine: Params, rest: Params, batch: TokenBatch) -> tuple[Array, Array]:
        there = (batch.segments > 0).astype(jnp.float32)
        everywhere = dataclasses.replace(batch, mask=there, max_targets=None)
        inner = score(merge(rest, mine), everywhere, mlp_inner=layer).mlp_inner
        assert inner is not None
        keys = (inner.astype(jnp.float32) * there[:, :, None]).reshape(-1, inner.shape[-1])
        return jnp.matmul(keys.T, keys, precision=PRECISE), there.sum()

    def add(total: Any, mine: Params, rest: Params, batch: TokenBatch) -> Any:
        return jax.tree.map(jnp.add, total, products(mine, rest, batch))

    first = jax.jit(products, compiler_options=compiler_options())
    more = jax.jit(add, donate_argnums=0, compiler_options=compiler_options())
    total = None
    for batch in batches:
        rest = params, frozen, batch
        total = first(*rest) if total is None else more(total, *rest)
    if total is None or not float(total[1]):
        raise UserError("key_moment: the texts hold no token")
    return total[0] / total[1]


def keys_and_outputs(
    material: Material, params: Params, role: str, layer: int, last: int
) -> tuple[Array, Array]:
    """What `mlp/down` of a layer multiplies at the end of each prompt, and what a layer gives.

    Args:
      material: holds the model and the set.
      params: the leaves that may change, as they are now.
      role: of a set of questions.
      layer: whose keys are read, from 0.
      last: whose output is read.
    Returns:
      (float32 `[m, F]`, float32 `[m, D]`); rows without an example are 0.
    """

    def read(mine: Params, rest: Params, batch: TokenBatch) -> tuple[Array, Array]:
        whole = merge(rest, mine)
        scores = material.score(whole, questions(batch), mlp_inner=layer, residual=last)
        there = (batch.example[:, :1] >= 0).astype(jnp.float32)
        assert scores.mlp_inner is not None and scores.residual is not None
        key, output = scores.mlp_inner[:, 0], scores.residual[:, 0]
        return key.astype(jnp.float32) * there, output.astype(jnp.float32) * there

    run = jax.jit(read, compiler_options=compiler_options())
    parts = [run(params, material.frozen, batch) for batch in material.passes(role, singly=True)]
    keys, outputs = zip(*parts, strict=True)
    return jnp.concatenate(keys), jnp.concatenate(outputs)


def share_hit(material: Material, params: Params, role: str) -> Array:
    """Of a set's labelled targets, those that are the likeliest token; float32 scalar.

    Args:
      material: holds the model and the set.
      params: the leaves that may change, as they are now.
      role: of the set.
    """
    return _mean_hit(material, params, material.passes(role))


def share_said(material: Material, params: Params, role: str) -> Array:
    """Of a set of questions, those whose likeliest next token is the labelled one."""
    asked = (questions(batch) for batch in material.passes(role, singly=True))
    return _mean_hit(material, params, asked, slots=1)


def _mean_hit(
    material: Material, params: Params, batches: Iterable[TokenBatch], slots: int | None = None
) -> Array:
    def read(mine: Params, rest: Params, batch: TokenBatch) -> Array:
        scores = material.score(merge(rest, mine), batch, stats=True)
        assert scores.stats is not None
        mask = scores.mask[:, :slots]
        return jnp.stack([(scores.stats.hit[:, :slots] * mask).sum(), mask.sum()])

    run = jax.jit(read, compiler_options=compiler_options())
    hits, count = jnp.stack([run(params, material.frozen, batch) for batch in batches]).sum(0)
    return hits / count
