"""The gradients of OFMU: of Phi and of the retain loss penalised by the norm of the former.

Nothing of the size of a Hessian exists: products with it are forward over reverse, or differences
of gradients. Source: Asif and Amiri 2025 (arXiv 2509.22483).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params

TINY = 1e-12  # both gradients vanish at a memorised start

type Gradient = Callable[[Params], Params]
type Product = Literal["exact", "finite_difference"]


@dataclass(frozen=True)
class OfmuSettings:
    """Of `ofmu`.

    Attributes:
      beta: weight of the similarity of forget and retain gradients, >= 0.
      rho: weight of the stationarity penalty at the first outer step, >= 0. Large values undo
        forgetting: the trained model is itself stationary.
      growth: factor of rho after every outer step, >= 1.
      inner_steps: T >= 0.
      reading: where the outer step starts and is computed: "A": both at the end of the inner
        loop; "B": both at its start; "C": computed at its end, taken from its start.
      similarity: "plain" prefers opposed gradients, "squared" and "absolute" orthogonal ones.
      inner, outer: products with the Hessians of the losses in every step, and with that of Phi
        in outer steps: "exact", forward over reverse; or by "finite_difference" of gradients,
        which is cheaper and serves attention without a forward rule.
      finite_step: of the differences, relative to the parameters' norm.
      normalise: scale each direction to length 1 before the optimizer.
    """

    beta: float = 0.1
    rho: float = 0.0
    growth: float = 1.05
    inner_steps: int = 5
    reading: Literal["A", "B", "C"] = "A"
    similarity: Literal["plain", "squared", "absolute"] = "plain"
    inner: Product = "exact"
    outer: Product = "exact"
    finite_step: float = 1e-3
    normalise: bool = False

    def __post_init__(self) -> None:
        bounds = {"beta": 0, "rho": 0, "growth": 1, "inner_steps": 0}
        for name, low in bounds.items():
            if not getattr(self, name) >= low:
                raise UserError(f"ofmu: {name} must be at least {low}, got {getattr(self, name)}")
        if not self.finite_step > 0:
            raise UserError(f"ofmu: finite_step must be above 0, got {self.finite_step}")

    @property
    def second_order(self) -> bool:
        """Whether any product with a Hessian is exact."""
        inner = self.beta > 0 and self.inner == "exact"
        return inner or (self.rho > 0 and self.outer == "exact")


class Losses(NamedTuple):
    """L_f and L_r of one step's batches as functions of the trained leaves."""

    forget: Callable[[Params], Array]
    retain: Callable[[Params], Array]


class Phi(NamedTuple):
    """What is found on the way to grad Phi.

    Attributes:
      retain_gradient: g_r, like the parameters.
      forget, retain: the terms, -L_f and L_r.
      similarity: cosine of g_f and g_r.
    """

    retain_gradient: Params
    forget: Array
    retain: Array
    similarity: Array


def phi_gradient(losses: Losses, params: Params, settings: OfmuSettings) -> tuple[Params, Phi]:
    """grad Phi: g_f - beta (H_f u + H_r w) with the tangents u, w of the similarity.

    Args:
      losses: L_f and L_r.
      params: where.
      settings: `beta`, `similarity` and `inner` count; beta 0 costs no Hessian product.
    Returns:
      (gradient like `params`, see `Phi`).
    """
    differences = settings.finite_step if settings.inner == "finite_difference" else None
    (loss_f, g_f), push_f = _linear(losses.forget, params, differences)
    (loss_r, g_r), push_r = _linear(losses.retain, params, differences)
    norm_f, norm_r = optax.tree.norm(g_f) + TINY, optax.tree.norm(g_r) + TINY
    cosine = jnp.asarray(optax.tree.vdot(g_f, g_r) / (norm_f * norm_r))
    found = Phi(g_r, -loss_f, loss_r, cosine)
    if settings.beta == 0:
        return g_f, found
    u = jax.tree.map(lambda f, r: (r / norm_r - cosine * f / norm_f) / norm_f, g_f, g_r)
    w = jax.tree.map(lambda f, r: (f / norm_f - cosine * r / norm_r) / norm_r, g_f, g_r)
    slopes: dict[str, Any] = {"plain": 1.0, "squared": 2.0 * cosine, "absolute": jnp.sign(cosine)}
    slope = settings.beta * slopes[settings.similarity]
    change = jax.tree.map(jnp.add, push_f(u), push_r(w))
    return jax.tree.map(lambda g, h: g - slope * h, g_f, change), found


def _linear(
    loss: Callable[[Params], Array], params: Params, differences: float | None
) -> tuple[Any, Gradient]:
    """(value and gradient of a loss, its Hessian as a function of a tangent)."""
    if differences is None:
        # linearised once: the products then need no second forward and backward pass
        both, push = jax.linearize(jax.value_and_grad(loss), params)
        return both, lambda tangent: push(tangent)[1]
    both = jax.value_and_grad(loss)(params)
    return both, lambda tangent: _difference(jax.grad(loss), params, both[1], tangent, differences)


def _difference(
    gradient: Gradient, params: Params, here: Params, tangent: Params, step: float
) -> Params:
    """(gradient(params + e tangent) - here) / e, e making the move `step` of the parameters."""
    e = step * optax.tree.norm(params) / (optax.tree.norm(tangent) + TINY)
    moved = jax.tree.map(lambda p, t: p + e * t, params, tangent)
    return jax.tree.map(lambda a, b: (a - b) / e, gradient(moved), here)


def outer_gradient(
    losses: Losses, params: Params, rho: Array, settings: OfmuSettings
) -> tuple[Params, Params, Phi]:
    """grad (L_r + rho ||grad Phi||^2) = g_r + 2 rho H_Phi grad Phi.

    Args:
      losses: L_f and L_r.
      params: where.
      rho: float32 scalar.
      settings: see `OfmuSettings`; with rho 0 at the start the penalty is never computed.
    Returns:
      (gradient like `params`, grad Phi, see `Phi`).
    """

    def grad_phi(at: Params) -> tuple[Params, Phi]:
        return phi_gradient(losses, at, settings)

    if settings.rho == 0:
        direction, found = grad_phi(params)
        return found.retain_gradient, direction, found
    if settings.outer == "exact":
        direction, push, found = jax.linearize(grad_phi, params, has_aux=True)
        product = push(direction)
    else:
        direction, found = grad_phi(params)
        product = _difference(
            lambda at: grad_phi(at)[0], params, direction, direction, settings.finite_step
        )
    g_r = found.retain_gradient
    return jax.tree.map(lambda g, h: g + 2.0 * rho * h, g_r, product), direction, found
