"""Parameters of the strategies with their papers' defaults; values are validated by type and range.

`weight` scales what a strategy adds and is >= 0; what scales with a model has no default that suits
all, and is swept.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from jaxforget.strategies.selection import LIKELY
from jaxforget.strategies.subspaces import MATRICES

type Weight = Annotated[float, Ge(0)]
type Positive = Annotated[float, Gt(0)]
type Share = Annotated[float, Gt(0), Le(1)]
type Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Nothing:
    """Of strategies without parameters."""


@dataclass(frozen=True)
class Replay:
    """Of `replay`: weights of the buffer's examples and of the new task's beside them."""

    weight: Weight = 1.0
    new_weight: Weight = 1.0


@dataclass(frozen=True)
class Der:
    """Of `der`: `kept` is what is stored with an example, see `logit_distance_part`."""

    alpha: Weight = 0.1
    kept: Literal["hidden", "top", "target"] = "target"


@dataclass(frozen=True)
class DerPlus(Der):
    """Of `derpp`: `beta` weighs the labels of a second draw from the buffer."""

    beta: Weight = 0.5


@dataclass(frozen=True)
class Ewc:
    """Of `ewc`: see `jaxforget.strategies.ewc`; `examples` null reads the whole task."""

    weight: Weight = 1.0
    anchors: Literal["each", "last"] = "each"
    gamma: Annotated[float, Ge(0), Le(1)] = 1.0
    kind: Literal["empirical", "true", "squared_batch"] = "empirical"
    examples: Count | None = None


@dataclass(frozen=True)
class Si:
    """Of `si`: see `jaxforget.strategies.si`."""

    weight: Weight = 0.1
    damping: Positive = 0.1
    storage: Literal["compact", "exact"] = "compact"


@dataclass(frozen=True)
class Mas:
    """Of `mas`: see `jaxforget.strategies.mas`."""

    weight: Weight = 1.0
    keep: Weight = 1.0
    take: Weight = 1.0
    examples: Count | None = None


@dataclass(frozen=True)
class Lwf:
    """Of `lwf`: `teacher` "previous" caches its hidden states for a task, "live" asks it in every
    step; `start` also holds the first task to the model before the stream."""

    weight: Weight = 1.0
    temperature: Positive = 2.0
    teacher: Literal["previous", "live"] = "previous"
    start: bool = False


@dataclass(frozen=True)
class Gem:
    """Of `gem`: see `jaxforget.combiners.gem`."""

    margin: Weight = 0.5
    ridge: Weight = 1e-3


@dataclass(frozen=True)
class Ogd:
    """Of `ogd`: see `jaxforget.strategies.ogd`."""

    rank: Count = 200
    per_task: Count = 100
    on: Literal["update", "gradient"] = "update"


@dataclass(frozen=True)
class Gpm:
    """Of `gpm`: see `jaxforget.strategies.gpm`."""

    paths: str = MATRICES
    room: Share = 0.5
    threshold: Annotated[float, Ge(0), Le(1)] = 0.97
    examples: Count | None = 128


@dataclass(frozen=True)
class OLora:
    """Of `o_lora`: see `jaxforget.strategies.o_lora`."""

    weight: Weight = 0.5
    norm_weight: Weight = 0.0
    tasks: Count = 8


@dataclass(frozen=True)
class RegLora:
    """Of `reg_lora`: see `jaxforget.strategies.reg_lora`."""

    weight: Weight = 2500.0
    share: Share = 0.02


@dataclass(frozen=True)
class KappaTune:
    """Of `kappatune`: one of the first three, see `jaxforget.strategies.kappatune`."""

    share: Share | None = 0.2
    count: Count | None = None
    threshold: Positive | None = None
    largest: Count = 16384


@dataclass(frozen=True)
class Fpf:
    """Of `fpf`: `steps` on the buffer after the last task; `modules` and `share` say what moves,
    see `jaxforget.strategies.fpf`; `match` "logits" adds `der`'s term with weight `alpha`."""

    modules: str = LIKELY
    share: Share | None = None
    steps: Count = 300
    match: Literal["labels", "logits"] = "labels"
    alpha: Weight = 0.1
    kept: Literal["hidden", "top", "target"] = "target"


@dataclass(frozen=True)
class KFpf(Fpf):
    """Of `k_fpf`: `steps` on the buffer after each `every` steps on the stream."""

    steps: Count = 20
    every: Count = 100


@dataclass(frozen=True)
class Ema:
    """Of `ema`."""

    decay: Annotated[float, Ge(0), Le(0.999999)] = 0.999


@dataclass(frozen=True)
class WiseFt:
    """Of `wise_ft`: `anchor` as in `jaxforget.strategies.wise_ft`; with `carry` the next task
    starts from the mixture."""

    share: Annotated[float, Ge(0), Le(1)] = 0.5
    anchor: Literal["start", "previous"] = "start"
    carry: bool = False


@dataclass(frozen=True)
class MaxMerge:
    """Of `max_merge`: scale of the merged task vector."""

    scale: Weight = 1.0
