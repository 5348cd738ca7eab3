"""Terms that hold a model where it is: on data to keep, against what it was."""

from typing import Literal, get_args

import jax

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.types import Reference
from jaxforget.objectives.distribution import reference_kl
from jaxforget.objectives.parts import Part, reference_of
from jaxforget.objectives.representation import mean_squared_distance
from jaxforget.objectives.sequence import mean_example_logp
from jaxforget.objectives.token import mean_logp

type Retain = Literal["none", "nll", "kl", "kl_reverse"]
"""How a method holds on to the retain set: not at all, by the negative log-likelihood of its
targets, by KL(starting model || model) or by KL(model || starting model) at them."""

RETAIN = "retain"


def retain_part(kind: str, role: str = RETAIN) -> Part | None:
    """The retain term of a kind; None for "none".

    Raises:
      UserError: an unknown kind.
    """
    allowed = get_args(Retain.__value__)
    if kind not in allowed:
        raise UserError(f"retain: no such term {kind!r}. {did_you_mean(kind, allowed)}")
    if kind == "none":
        return None
    return nll_part(role) if kind == "nll" else kl_part(role, reverse=kind == "kl_reverse")


def nll_part(role: str = RETAIN, per: Literal["token", "example"] = "token") -> Part:
    """Mean negative log-likelihood of a role's labelled targets.

    Args:
      role: data set.
      per: "token": all targets weigh alike; "example": all examples do, see `mean_example_logp`.
    """
    mean = mean_logp if per == "token" else mean_example_logp
    return Part((role,), lambda scores, _: (-mean(scores[role]), {}))


def kl_part(
    role: str = RETAIN, *, reverse: bool = False, random: bool = False, temperature: float = 1.0
) -> Part:
    """Mean divergence between starting model and model at a role's labelled targets.

    Args:
      role: data set.
      reverse: KL(model || starting model) instead of KL(starting model || model).
      random: a randomly initialised model takes the starting model's place.
      temperature: see `reference_kl`.
    """

    def value(scores, reference: Reference):
        start = reference_of(reference, role, scores[role])
        found = reference_kl(scores[role], start, reverse=reverse, temperature=temperature)
        return found, {}

    return Part((role,), value, {role: frozenset({"hidden"})}, random=random)


def residual_part(layer: int, role: str = RETAIN) -> Part:
    """Mean squared distance of a layer's output to the starting model's; the retain side of RMU.

    Args:
      layer: counted from 0, negative from the last.
      role: data set.
    """

    def value(scores, reference: Reference):
        start = reference_of(reference, role, scores[role]).residual
        if start is None:
            raise UserError(f"the reference of {role!r} holds no residual; cache 'residual' for it")
        return mean_squared_distance(scores[role], jax.lax.stop_gradient(start)), {}

    return Part((role,), value, {role: frozenset({"residual"})}, residual=layer)
