"""Penalties that are quadratic in the distance from earlier parameters: EWC and MAS.

The penalty's gradient is added in closed form before the optimizer: nothing is differentiated, and
the state is two copies of the parameters whatever the number of tasks.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxforget.combiners.terms import number
from jaxforget.edits.material import Material
from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Metrics
from jaxforget.strategies.guard import Guard, Tree, added, copied, total, zeros
from jaxforget.strategies.importances import FisherKind, check_kind, fisher, output_sensitivity

TRAIN = "train"
"""Role of the data set of the task that ends."""


class AnchorState(NamedTuple):
    """What a quadratic penalty carries; both trees are float32 and like the parameters.

    Attributes:
      importance: >= 0, the curvature; zeros before the first task ends.
      anchor: where the penalty is smallest.
      least: the penalty there, before its factor; float32 scalar. Above 0 where the penalties of
        several tasks pull apart.
    """

    importance: Tree
    anchor: Tree
    least: Array


type Anchors = Literal["each", "last"]
"""Is every task held where it ended, or are all of them held where the last one did?"""


def ewc(
    weight: float,
    *,
    anchors: Anchors = "each",
    gamma: float = 1.0,
    kind: FisherKind = "empirical",
    examples: int | None = None,
) -> Guard:
    """Elastic weight consolidation: (weight / 2) sum_i F_i (theta_i - theta*_i)^2.

    With `anchors` "each" it is the sum of one penalty a task, each with its Fisher information and
    its theta*, exactly: a sum of such parabolas is one with curvature F = sum_k F_k around
    sum_k F_k theta*_k / F. With "last" it is online EWC: F <- gamma F + F_k around the newest
    theta* alone. The task being trained never penalises itself.

    An explicit step is stable where learning rate x weight x F is below 2.

    Args:
      weight: lambda >= 0; 0 changes nothing.
      anchors: see above.
      gamma: what is left of earlier tasks' information when a task ends, in [0, 1].
      kind: which Fisher information; see `fisher`.
      examples: of each task that it is estimated on; None: all.
    Returns:
      A `Guard`; `measured` is the diagonal Fisher information, a tree like the parameters. State:
      `AnchorState`. Metric `ewc_penalty`.
    Raises:
      UserError: a value out of range.
    Source: Kirkpatrick et al. 2017 (arXiv 1612.00796), eq. 3; online: Schwarz et al. 2018
      (arXiv 1805.06370), eq. 9.
    """
    number("ewc", "gamma", gamma, 0.0, 1.0)
    check_kind("ewc", kind)
    if anchors not in ("each", "last"):
        raise UserError(f"ewc: anchors must be 'each' or 'last', got {anchors!r}")

    def measure(material: Material) -> Tree:
        singly = kind != "squared_batch"
        return fisher(
            material.score,
            material.params,
            material.passes(TRAIN, singly=singly),
            kind=kind,
            frozen=material.frozen,
            key=material.key,
            limit=examples,
        )

    return anchored("ewc", 0.5 * number("ewc", "weight", weight), measure, gamma, 1.0, anchors)


def mas(
    weight: float, *, keep: float = 1.0, take: float = 1.0, examples: int | None = None
) -> Guard:
    """Memory aware synapses: weight sum_i Omega_i (theta_i - theta*_i)^2, without labels.

    Omega is the mean over examples of |d ||logits||^2 / d theta|.

    Args:
      weight: lambda >= 0; 0 changes nothing.
      keep, take: Omega <- keep Omega + take Omega_k when a task ends, both >= 0; 1 and 1 add up as
        the authors' code does, 0.5 and 0.5 are Avalanche's.
      examples: of each task that it is estimated on; None: all.
    Returns:
      A `Guard`; `measured` is Omega_k, see `output_sensitivity`. State: `AnchorState`. Metric
      `mas_penalty`.
    Raises:
      UserError: a value out of range.
    Source: Aljundi et al. 2018 (arXiv 1711.09601), eq. 2-4.
    """

    def measure(material: Material) -> Tree:
        batches = material.passes(TRAIN, singly=True)
        return output_sensitivity(
            material.score, material.params, batches, frozen=material.frozen, limit=examples
        )

    number("mas", "keep", keep)
    number("mas", "take", take)
    return anchored("mas", number("mas", "weight", weight), measure, keep, take, "last")


def anchored(
    name: str,
    factor: float,
    measure: Callable[[Material], Tree],
    keep: float,
    take: float,
    anchors: Anchors,
) -> Guard:
    """factor sum_i W_i (theta_i - theta*_i)^2 with W <- keep W + take W_k when a task ends.

    Args:
      name: of the metric, `<name>_penalty`.
      factor: >= 0.
      measure: the importance W_k of a task that ended.
      keep, take: see above.
      anchors: see `Anchors`.
    """

    def init(params: Tree) -> AnchorState:
        return AnchorState(zeros(params), copied(params), jnp.zeros((), jnp.float32))

    def gradient(g: Tree, state: AnchorState, params: Tree) -> tuple[Tree, Metrics]:
        gap = jax.tree.map(lambda p, a: p.astype(jnp.float32) - a, params, state.anchor)
        pull = jax.tree.map(lambda w, d: w * d, state.importance, gap)
        value = total(jax.tree.map(lambda w, d: w * d, pull, gap))
        more = jax.tree.map(lambda x: (2 * factor) * x, pull)
        return added(g, more), {f"{name}_penalty": factor * (state.least + value)}

    def end_of_task(state: AnchorState, params: Tree, measured: Tree) -> AnchorState:
        old = jax.tree.map(lambda w: keep * w, state.importance)
        new = jax.tree.map(lambda w: take * w.astype(jnp.float32), measured)
        joint = jax.tree.map(jnp.add, old, new)
        if anchors == "last":
            return AnchorState(joint, copied(params), jnp.zeros((), jnp.float32))
        gap = jax.tree.map(lambda p, a: p.astype(jnp.float32) - a, params, state.anchor)
        share = jax.tree.map(_part, new, joint)
        anchor = jax.tree.map(_between, state.anchor, params, share)
        apart = total(jax.tree.map(lambda o, s, d: o * s * jnp.square(d), old, share, gap))
        return AnchorState(joint, anchor, keep * state.least + apart)

    return Guard(
        init=init,
        gradient=gradient if factor else None,
        measure=measure,
        end_of_task=end_of_task,
    )


def _part(new: Array, joint: Array) -> Array:
    """new / joint, and 1 where both are 0."""
    return jnp.where(joint > 0, new / jnp.where(joint > 0, joint, 1.0), 1.0)


def _between(old: Array, new: Array, share: Array) -> Array:
    """old + share (new - old); exactly old at share 0 and exactly new at 1."""
    new = new.astype(jnp.float32)
    gap = new - old
    return jnp.where(share < 0.5, old + share * gap, new - (1 - share) * gap)
