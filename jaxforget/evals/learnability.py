"""LQS: how much an example helps a clean target set, and whether it is still being learned.

A proxy takes steps of plain gradient descent; then its path is walked back with the gradient of
what the target set loses along it. Everything is exact reverse-mode differentiation of that path,
and every example is scored itself: the paper scores a sample and fits a small model to the scores.
Source: DELT, Dai et al. 2025 (arXiv 2506.21545); the target vectors are those of PDS (Gu et al.).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.runtime import compiler_options
from jaxforget.engine.tree import Params

type Sums = Callable[[Params, Any], tuple[Array, Array]]
"""(parameters, batch) -> (summed loss, how many it is summed over)."""


@dataclass(frozen=True)
class Lqs:
    """Scores of n examples over the visited steps t of the proxy.

    Attributes:
      score: gamma = sum_t <lambda_{t+1}, g_t> / ||g_{t+1}||, float64 `[n]`: learnability, quality
        and reliability multiplied in every step.
      learnability: sum_t ||g_t|| / ||g_{t+1}||, float64 `[n]`.
      quality: sum_t cos(lambda_{t+1}, g_t), float64 `[n]`.
      reliability: ||lambda_{t+1}|| of the visited steps, the last first.
    """

    score: np.ndarray
    learnability: np.ndarray
    quality: np.ndarray
    reliability: np.ndarray


def lqs(
    sums: Sums,
    params: Params,
    *,
    proxy: Sequence[Any],
    target: Sequence[Any],
    examples: Sequence[tuple[np.ndarray, Any]],
    learning_rate: float,
    every: int = 1,
    counted: Callable[[int, int], None] = lambda *_: None,
) -> Lqs:
    """Learnability-quality scores of examples.

    With L_t the proxy's loss in step t, J the target's and theta_{t+1} = theta_t - eta grad L_t,
    lambda_T = grad J(theta_T) and lambda_t = lambda_{t+1} + grad J(theta_t) - eta H_t lambda_{t+1}:
    the gradient of sum_{s >= t} J(theta_s) by theta_t. A step that weighed example x a little more
    would change that sum by -eta <lambda_{t+1}, g_t(x)>.

    Args:
      sums: loss of a batch; the batches of each argument below may have shapes of their own.
      params: theta_1, floating leaves.
      proxy: batches of steps 1 .. T - 1.
      target: batches of the target set; J is the mean over all that they count.
      examples: (index of each row `[B]`, -1 where it is empty; batch whose leading axis are rows):
        the rows are scored one at a time.
      learning_rate: eta > 0, constant.
      every: steps between two visits to the examples, from the last step backwards; the norm
        ||g_{t+1}|| is then of the visit before, first of theta_T.
      counted: told (steps walked back, steps in all).
    Returns:
      `Lqs`, in the order of the indices 0 .. n - 1. A norm of zero contributes nothing.
    Raises:
      UserError: no step, no target, numbers out of range, a path that is not finite.

    The path is kept at about sqrt(T) points on the host and computed again between them.
    """
    if not proxy or not target or not examples:
        raise UserError("LQS: needs steps of a proxy, a target set and examples to score")
    if learning_rate <= 0 or every < 1:
        raise UserError(f"LQS: learning_rate {learning_rate} must be above 0, every {every} >= 1")
    programs = _Programs(sums, learning_rate)
    count = 1 + max(int(rows.max(initial=-1)) for rows, _ in examples)
    path = _Path(programs, params, proxy)
    last = path.at(len(proxy))
    pull = programs.gradient(last, target)
    after, _ = _visited(programs, last, pull, examples, count)
    found = np.zeros((3, count))
    sizes = []
    for step in range(len(proxy) - 1, -1, -1):
        theta = path.at(step)
        if (len(proxy) - 1 - step) % every == 0:
            norms, dots = _visited(programs, theta, pull, examples, count)
            size = float(programs.norm(pull))
            sizes.append(size)
            found += [
                _ratio(dots, after),
                _ratio(norms, after),
                _ratio(dots, norms * size),
            ]
            after = norms
        pull = programs.back(pull, theta, proxy[step], programs.gradient(theta, target))
        counted(len(proxy) - step, len(proxy))
    score, learnability, quality = found
    return Lqs(score, learnability, quality, np.asarray(sizes))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _visited(
    programs: "_Programs", params: Params, pull: Params, examples: Sequence[Any], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(norm of each example's gradient, its product with `pull`), float64 `[n]`."""
    found = np.zeros((2, count))
    for rows, batch in examples:
        there = rows >= 0
        for place, values in enumerate(programs.each(params, pull, batch)):
            found[place, rows[there]] = np.asarray(values, np.float64)[there]
    if not np.isfinite(found).all():
        raise UserError("LQS: the proxy's path is not finite; lower its learning_rate")
    return found[0], found[1]


class _Programs:
    """The compiled pieces, for one loss and one learning rate."""

    def __init__(self, sums: Sums, eta: float) -> None:
        def loss(params: Params, batch: Any) -> Array:
            total, size = sums(params, batch)
            return total / jnp.maximum(size, 1)

        def forward(params: Params, batch: Any) -> Params:
            slope = jax.grad(loss)(params, batch)
            return jax.tree.map(lambda p, g: p - eta * g, params, slope)

        def back(pull: Params, params: Params, batch: Any, slope: Params) -> Params:
            # (I - eta H) is symmetric: forward over reverse gives what reverse mode would
            _, curved = jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (pull,))
            return jax.tree.map(lambda a, g, h: a + g - eta * h, pull, slope, curved)

        def grown(params: Params, batch: Any) -> Any:
            return jax.grad(sums, has_aux=True)(params, batch)

        def each(params: Params, pull: Params, batch: Any) -> tuple[Array, Array]:
            def one(row: Any) -> tuple[Array, Array]:
                slope = jax.grad(loss)(params, jax.tree.map(lambda leaf: leaf[None], row))
                return _norm(slope), _dot(slope, pull)

            return jax.lax.map(one, batch)

        options = compiler_options()
        self.forward = jax.jit(forward, compiler_options=options)
        self.back = jax.jit(back, compiler_options=options)
        self.each = jax.jit(each, compiler_options=options)
        self.norm = jax.jit(_norm)
        self._grown = jax.jit(grown, compiler_options=options)

    def gradient(self, params: Params, batches: Sequence[Any]) -> Params:
        """Of the mean loss over all batches."""
        slopes, sizes = zip(*(self._grown(params, batch) for batch in batches), strict=True)
        size = jnp.maximum(sum(sizes[1:], sizes[0]), 1)
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / size, *slopes)


def _norm(tree: Params) -> Array:
    return jnp.sqrt(_dot(tree, tree))


def _dot(left: Params, right: Params) -> Array:
    products = jax.tree.map(
        lambda a, b: (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(), left, right
    )
    return jnp.asarray(sum(jax.tree.leaves(products)))


class _Path:
    """theta_1 .. theta_T by number of steps, asked for from the last backwards."""

    def __init__(self, programs: _Programs, params: Params, proxy: Sequence[Any]) -> None:
        self.programs, self.proxy = programs, proxy
        self.stride = max(1, math.isqrt(len(proxy)))
        self.kept: dict[int, Any] = {}
        self.near: dict[int, Params] = {}
        for step in range(len(proxy) + 1):
            if step % self.stride == 0:
                self.kept[step] = jax.tree.map(np.asarray, params)
            if step < len(proxy):
                params = programs.forward(params, proxy[step])
        self.near = {len(proxy): params}

    def at(self, step: int) -> Params:
        """Parameters after so many steps."""
        if step not in self.near:
            first = step - step % self.stride
            params = jax.tree.map(jnp.asarray, self.kept[first])
            self.near = {first: params}
            for done in range(first, step):
                params = self.programs.forward(params, self.proxy[done])
                self.near[done + 1] = params
        return self.near[step]
