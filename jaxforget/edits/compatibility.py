"""Which texts would pull a model away from what it is to learn."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget.combiners.vectors import dot
from jaxforget.edits.checks import check_alike
from jaxforget.edits.importance import Estimator
from jaxforget.engine.errors import UserError
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params, merge
from jaxforget.engine.types import ScoreFn, TokenBatch

type Select = Literal["highest", "random", "lowest"]
"""Which texts are forgotten: those that conflict most with what is learned, any, or the others."""


@dataclass(frozen=True)
class OwnText:
    """A forget set that the model writes itself, before it is trained.

    Attributes:
      learn_epochs: of the short training on the retain set that says what is to be learned.
      share: of the texts that is forgotten, in (0, 1].
      select: see `Select`.
      rate: of the one gradient step that a text wants; None: the learning rate of the run.
      estimator: of the Fisher information, see `importance`.
      max_new_tokens: longest text.
      temperature: 0: the likeliest token always.
    """

    learn_epochs: float = 1.0
    share: float = 0.25
    select: Select = "highest"
    rate: float | None = None
    estimator: Estimator = "squared_batch"
    max_new_tokens: int = 64
    temperature: float = 0.0


def forgetting_compatibility(
    score: ScoreFn,
    params: Params,
    learned: Params,
    fisher: Params,
    batches: Iterable[TokenBatch],
    *,
    rate: float,
    frozen: Params | None = None,
) -> np.ndarray:
    """How badly what is learned would be served where each text wants the weights.

    FC(x) = 1/2 sum F (w - a grad L(x) - w*)^2 less its constant 1/2 sum F (w - w*)^2, which every
    text shares and which would drown the rest in float32: -a <F (w - w*), g> + a^2/2 <F, g^2>.
    High: the text pulls away from w*, so that forgetting it does not harm, or helps, learning.

    Args:
      score: the model.
      params: w, floating leaves of the model before any training.
      learned: w*, the same leaves after learning.
      fisher: F, the diagonal Fisher information of what is learned, >= 0.
      batches: one example a row; rows without one are passed over.
      rate: a, > 0.
      frozen: further leaves of the model.
    Returns:
      float64 `[n]`, in order of the examples' numbers.
    Raises:
      UserError: trees that differ, rows of several examples, no example.
    Source: LWF (arXiv 2505.19715), the Laplace approximation of -log P(w*(x) | learned).
    """
    for what, tree in (("learned", learned), ("fisher", fisher)):
        check_alike("forgetting_compatibility", what, tree, params)
    pull = jax.tree.map(
        lambda f, w, best: f * (w.astype(jnp.float32) - best.astype(jnp.float32)),
        fisher,
        params,
        learned,
    )
    run = _compiled(score)
    found: dict[int, float] = {}
    for batch in batches:
        if batch.example.shape[1] != 1:
            raise UserError("forgetting_compatibility: needs one example a row (max_segments=1)")
        values = run(params, frozen or {}, pull, fisher, batch, jnp.float32(rate))
        ids = np.asarray(batch.example)[:, 0]
        found |= {int(i): float(v) for i, v in zip(ids, np.asarray(values), strict=True) if i >= 0}
    if not found:
        raise UserError("forgetting_compatibility: there is no example")
    return np.asarray([found[i] for i in sorted(found)], np.float64)


@functools.lru_cache(maxsize=8)
def _compiled(score: ScoreFn) -> Any:
    def run(
        params: Params, rest: Params, pull: Params, fisher: Params, batch: TokenBatch, rate: Array
    ) -> Array:
        def one(_: None, row: TokenBatch) -> tuple[None, Array]:
            single = jax.tree.map(lambda leaf: leaf[None], row)

            def nll(p: Params) -> Array:
                scores = score(merge(rest, p), single)
                return -(scores.logp * scores.mask).sum() / jnp.maximum(scores.mask.sum(), 1.0)

            gradient = jax.grad(nll)(params)
            return None, -rate * dot(pull, gradient) + rate**2 / 2 * dot(gradient, gradient, fisher)

        # a loop, not vmap: one gradient of the size of the model at a time
        return jax.lax.scan(one, None, batch)[1]

    return jax.jit(run, compiler_options=compiler_options())


def forgotten_texts(scores: np.ndarray, share: float, select: Select, seed: int) -> np.ndarray:
    """Indices of the texts to forget, in order.

    Args:
      scores: `[n]`, see `forgetting_compatibility`; ties go to the first.
      share: of them, in (0, 1]; at least one.
      select: see `Select`.
      seed: of the draw, for "random".
    Returns:
      int64 `[max(1, round(share n))]`, ascending.
    """
    count = max(1, round(share * len(scores)))
    if select == "random":
        order = np.random.default_rng(seed).permutation(len(scores))
    else:
        order = np.argsort(-scores if select == "highest" else scores, kind="stable")
    return np.sort(order[:count])
