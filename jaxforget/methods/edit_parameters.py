"""Parameters of the methods that edit whole models; see `parameters`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from jaxforget.methods.parameters import Positive, Weight


@dataclass(frozen=True)
class Ssd:
    """Of `ssd`: see `jaxforget.edits.ssd` and `jaxforget.edits.importance`."""

    alpha: Positive = 10.0
    lam: Weight = 1.0
    estimator: Literal["per_example", "squared_batch", "absolute_batch"] = "squared_batch"


@dataclass(frozen=True)
class TaskArithmetic:
    """Of `task_arithmetic`: how far to go against the task vector."""

    scale: Weight = 1.0


@dataclass(frozen=True)
class FisherForgetting:
    """Of `fisher_forgetting`: see `jaxforget.edits.fisher_forgetting`."""

    alpha: Positive = 1e-6
    limit: Positive = 1e-3
    form: Literal["simple", "golatkar"] = "simple"
    estimator: Literal["per_example", "squared_batch", "absolute_batch"] = "per_example"


@dataclass(frozen=True)
class InfluenceApproximation:
    """Of `iau`: learning rate and kind of the one step."""

    learning_rate: Positive = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"


@dataclass(frozen=True)
class WoodFisher:
    """Of `woodfisher`: see `jaxforget.edits.woodfisher`; papers tune `scale` for each task."""

    scale: Weight = 1.0
    damping: Positive = 1000.0
    recursion: Literal["published", "exact"] = "published"


@dataclass(frozen=True)
class UniErase:
    """Of `unierase`; rates are Adam's, epochs those over the forget set.

    `token` is added to the vocabulary and taught by `plain_*`, then `forms_*` (plain and chat
    form), then `robust_*` for every edited layer, see `jaxforget.edits.new_token.perturbed`.
    `search_*`, `kl_weight`, `decay`, `limit` and `stop` are of `jaxforget.edits.steering.Search`;
    `neutral` is put behind a prompt, and what the model says there is held. `layers` count from 0,
    negative from the last; null: see `jaxforget.edits.unierase.chosen_layers`. `lam` and
    `threshold` are of `jaxforget.edits.null_space`; threshold null: nothing is preserved.
    """

    token: str = "[UNL]"
    plain_epochs: Annotated[int, Ge(1)] = 5
    plain_rate: Positive = 1e-3
    forms_epochs: Annotated[int, Ge(0)] = 3
    forms_rate: Positive = 1e-4
    robust_epochs: Annotated[int, Ge(0)] = 2
    robust_rate: Positive = 1e-4
    noise: Literal["mean", "mean_absolute"] = "mean"
    layers: tuple[int, ...] | None = None
    search_steps: Annotated[int, Ge(1)] = 10
    search_rate: Positive = 0.1
    neutral: str = " is a"
    kl_weight: Weight = 0.0625
    decay: Weight = 0.5
    limit: Positive = 0.75
    stop: Weight = 0.05
    lam: Weight = 10.0
    threshold: Positive | None = 2e-2
    preserve: Literal["retain", "general", "both"] = "retain"


@dataclass(frozen=True)
class L1Sparse:
    """Of `l1_sparse`: weight of the penalty at the first step."""

    scale: Weight = 5e-4
    retain_weight: Weight = 1.0


@dataclass(frozen=True)
class Amnesiac:
    """Of `amnesiac`: the folder of recorded updates, and how much of each is subtracted."""

    updates: str = "updates"
    share: Literal["whole", "proportional"] = "whole"
