"""Edits of a whole model from whole passes over its data: what methods name."""

from typing import Any, Literal

import optax

from jaxforget.combiners.vectors import cosine
from jaxforget.edits.amnesiac import amnesiac, read_updates
from jaxforget.edits.arithmetic import task_arithmetic
from jaxforget.edits.fisher_noise import fisher_forgetting, golatkar_forgetting
from jaxforget.edits.importance import Estimator, Sums, importance_sums, pooled
from jaxforget.edits.influence import influence_approximation, mean_gradient
from jaxforget.edits.material import Edit, Material
from jaxforget.edits.ssd import ssd
from jaxforget.edits.woodfisher import Recursion, example_gradients, woodfisher
from jaxforget.engine.tree import Params, flatten, matches
from jaxforget.engine.types import Metrics

FORGET, RETAIN = "forget", "retain"
HEAD = "^head/"


def ssd_edit(alpha: float, lam: float, estimator: Estimator) -> Edit:
    """`ssd` with the importance for the forget set and for forget and retain set together.

    Args:
      alpha, lam: see `ssd`.
      estimator: see `importance`.
    """

    def edit(material: Material) -> tuple[Params, Metrics]:
        retain, forget = (_importance(material, estimator, role) for role in (RETAIN, FORGET))
        everything = pooled(retain, forget)
        return ssd(material.params, pooled(forget), everything, alpha=alpha, lam=lam)

    return edit


def fisher_edit(
    alpha: float, limit: float, form: Literal["simple", "golatkar"], estimator: Estimator
) -> Edit:
    """Noise on what the retain set does not need, ten times wider in the output head.

    Args:
      alpha, limit: see `fisher_forgetting`; the form "golatkar" has no limit.
      form: `fisher_forgetting` or `golatkar_forgetting`.
      estimator: see `importance`.
    """

    def edit(material: Material) -> tuple[Params, Metrics]:
        found = pooled(_importance(material, estimator, RETAIN))
        head = HEAD if any(map(matches(HEAD), flatten(material.params))) else None
        options: dict[str, Any] = {"key": material.key, "alpha": alpha, "wide": head}
        if form == "simple":
            return fisher_forgetting(material.params, found, limit=limit, **options), {}
        return golatkar_forgetting(material.params, found, **options), {}

    return edit


def influence_edit(learning_rate: float, optimizer: Literal["adam", "sgd"]) -> Edit:
    """One optimizer step along the retain gradient minus the forget gradient, over whole sets."""
    transform = {"adam": optax.adam, "sgd": optax.sgd}[optimizer](learning_rate)

    def edit(material: Material) -> tuple[Params, Metrics]:
        forget, retain = (_gradient(material, role) for role in (FORGET, RETAIN))
        metrics = {
            "forget_gradient_norm": optax.tree.norm(forget),
            "retain_gradient_norm": optax.tree.norm(retain),
            "cosine": cosine(forget, retain),
        }
        return influence_approximation(material.params, forget, retain, transform), metrics

    return edit


def woodfisher_edit(scale: float, damping: float, recursion: Recursion) -> Edit:
    """`woodfisher` over the gradients of single retain examples."""

    def edit(material: Material) -> tuple[Params, Metrics]:
        forget, retain = (_gradient(material, role) for role in (FORGET, RETAIN))
        each = example_gradients(
            material.score,
            material.params,
            material.passes(RETAIN, singly=True),
            frozen=material.frozen,
        )
        sizes = _examples(material, FORGET), _examples(material, RETAIN)
        edited = woodfisher(
            material.params,
            forget,
            retain,
            each,
            counts=sizes,
            damping=damping,
            scale=scale,
            recursion=recursion,
        )
        return edited, {}

    return edit


def task_arithmetic_edit(scale: float) -> Edit:
    """`task_arithmetic` with the model that was fine-tuned on the forget set."""

    def edit(material: Material) -> tuple[Params, Metrics]:
        return task_arithmetic(material.params, material.tuned, scale=scale), {}

    return edit


def amnesiac_edit(updates: str, share: Literal["whole", "proportional"]) -> Edit:
    """`amnesiac` with the updates that a training recorded.

    Args:
      updates: folder, `updates/` in the run directory of that training.
      share: subtract whole updates, or the forgotten examples' part of each.
    """
    part = 1.0 if share == "whole" else lambda touched, seen: touched / seen

    def edit(material: Material) -> tuple[Params, Metrics]:
        wanted = material.ids(FORGET)
        kept = read_updates(updates, forget=wanted)
        return amnesiac(material.params, kept, forget=wanted, share=part)

    return edit


def _importance(material: Material, estimator: Estimator, role: str) -> Sums:
    return importance_sums(
        material.score,
        material.params,
        material.passes(role, singly=estimator == "per_example"),
        estimator=estimator,
        frozen=material.frozen,
    )


def _gradient(material: Material, role: str) -> Params:
    batches = material.passes(role)
    return mean_gradient(material.score, material.params, batches, frozen=material.frozen)


def _examples(material: Material, role: str) -> int:
    return sum(int((batch.example >= 0).sum()) for batch in material.passes(role))
