"""The catalogue: every method is a named choice of parts with its paper's defaults.

Adding one means adding one entry to `RECIPES` (and a small dataclass when its parameters are new).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxforget import objectives as o
from jaxforget.combiners import orthogonal_retain
from jaxforget.engine.types import Combiner, Loop
from jaxforget.loops import PLAIN, OfmuSettings, PrimalDualSettings, ofmu, primal_dual
from jaxforget.methods import parameters as p
from jaxforget.objectives import ObjectiveSpec


@dataclass(frozen=True)
class Built:
    """What a recipe makes of its parameters.

    Attributes:
      spec: objective and what it needs.
      weights: of its terms.
      combiner: the method's own; None: the weighted sum, or what the user attaches.
      loop: in which order it steps.
    """

    spec: ObjectiveSpec
    weights: Mapping[str, float]
    combiner: Combiner | None = None
    loop: Loop = PLAIN


@dataclass(frozen=True)
class Recipe:
    """One entry of the catalogue.

    Attributes:
      title: the method's usual name.
      paper: authors, year, arXiv id.
      formula: what is minimised, in one line.
      parameters: dataclass of its parameters with the paper's defaults.
      build: parameters -> what it is made of.
      cost: per step, in forward (F) and backward (B) passes over a batch of each role.
    """

    title: str
    paper: str
    formula: str
    parameters: type
    build: Callable[[Any], Built]
    cost: str = "1F + 1B"


def _built(make: Callable[[Any], ObjectiveSpec]) -> Callable[[Any], Built]:
    """A recipe whose terms weigh `<term>_weight`, 1 where there is no such parameter."""

    def build(parameters: Any) -> Built:
        spec = make(parameters)
        weights = {term: getattr(parameters, f"{term}_weight", 1.0) for term in spec.terms}
        return Built(spec, weights)

    return build


def _kl_min(q: p.KlMin) -> ObjectiveSpec:
    return o.graddiff("kl" if q.direction == "forward" else "kl_reverse")


def _pdu(q: p.Pdu) -> Built:
    settings = PrimalDualSettings(q.bound, q.start, q.rate, q.warmup)
    weights = {"forget": q.forget_weight, "retain": 1.0}
    return Built(o.spread_objective(), weights, loop=primal_dual(settings))


def _ofmu(q: p.Ofmu) -> Built:
    loop = ofmu(OfmuSettings(**asdict(q)))
    # apart: each gradient is of one role, and the other's rows must cost nothing
    return Built(o.graddiff(together=False), {"forget": 1.0, "retain": 1.0}, loop=loop)


def _bilevel_first_order(q: p.BlurBilevel) -> Built:
    combiner = orthogonal_retain(q.alpha, forget_weight=q.forget_weight)
    return Built(o.graddiff(), {"forget": 1.0, "retain": 1.0}, combiner)


RECIPES: Mapping[str, Recipe] = {
    "adaptive_rmu": Recipe(
        title="Adaptive RMU",
        paper="Dang et al. 2024 (arXiv 2408.06223)",
        formula="|h - s |h_start| u|^2 (forget) + |h - h_start|^2 (retain), one layer",
        parameters=p.AdaptiveRmu,
        build=_built(lambda q: o.rmu_objective(q.layer, q.scale, adaptive=True, seed=q.seed)),
        cost="1F + 1B up to the layer",
    ),
    "bilevel_first_order": Recipe(
        title="First-order bi-level",
        paper="Reisizadeh et al. 2025 (arXiv 2506.08164)",
        formula="g_f + alpha (g_r - its part along g_f), of -NLL(forget) and NLL(retain)",
        parameters=p.BlurBilevel,
        build=_bilevel_first_order,
        cost="1F + 2B",
    ),
    "ce_u": Recipe(
        title="CE-U",
        paper="Yang 2025 (arXiv 2503.01224)",
        formula="CE(model without the target, model)(forget)",
        parameters=p.CeU,
        build=_built(lambda q: o.ce_u_objective(q.skip, q.retain)),
    ),
    "dpo": Recipe(
        title="DPO with refusals (IdkDPO)",
        paper="Maini et al. 2024, TOFU (arXiv 2401.06121)",
        formula="(2/beta) mean softplus(-beta (gain of alternate - gain of forget)) + NLL(retain)",
        parameters=p.Dpo,
        build=_built(lambda q: o.dpo_objective(q.beta, q.retain)),
    ),
    "flat": Recipe(
        title="FLAT",
        paper="Wang et al. 2024 (arXiv 2410.11143)",
        formula="-g(p alternate) + f*(g(p forget))",
        parameters=p.Flat,
        build=_built(lambda q: o.flat_objective(q.divergence)),
    ),
    "ga": Recipe(
        title="Gradient ascent",
        paper="Jang et al. 2022 (arXiv 2210.01504)",
        formula="-NLL(forget)",
        parameters=p.Ascent,
        build=_built(lambda q: o.gradient_ascent_objective()),
    ),
    "graddiff": Recipe(
        title="Gradient difference",
        paper="Liu et al. 2022 (arXiv 2203.12817)",
        formula="-NLL(forget) + NLL(retain)",
        parameters=p.GradDiff,
        build=_built(lambda q: o.graddiff(q.retain)),
    ),
    "kl_min": Recipe(
        title="KL minimisation",
        paper="Maini et al. 2024, TOFU (arXiv 2401.06121)",
        formula="-NLL(forget) + KL(start || model)(retain)",
        parameters=p.KlMin,
        build=_built(_kl_min),
    ),
    "llmu": Recipe(
        title="LLMU",
        paper="Yao et al. 2023 (arXiv 2310.10683)",
        formula="-NLL(forget) + NLL(alternate) + KL(start || model)(retain)",
        parameters=p.Llmu,
        build=_built(lambda q: o.llmu_objective(q.retain)),
    ),
    "me": Recipe(
        title="Maximal entropy",
        paper="Yuan et al. 2024 (arXiv 2410.08109)",
        formula="KL(uniform || model)(forget) + NLL(retain)",
        parameters=p.MaximalEntropy,
        build=_built(lambda q: o.maximal_entropy_objective(q.retain)),
    ),
    "npo": Recipe(
        title="Negative preference optimisation",
        paper="Zhang et al. 2024 (arXiv 2404.05868)",
        formula="(2/beta) mean softplus(beta (log p - log p_start))(forget) + NLL(retain)",
        parameters=p.Npo,
        build=_built(lambda q: o.npo_objective(q.beta, q.retain)),
    ),
    "ofmu": Recipe(
        title="OFMU, bi-level",
        paper="Asif and Amiri 2025 (arXiv 2509.22483)",
        formula="NLL(retain) + rho |grad Phi|^2, ascending Phi = NLL(forget) - beta cos(g_f, g_r)",
        parameters=p.Ofmu,
        build=_ofmu,
        cost="2F + 2B + 2 Hessian products inner; about 4 times that outer",
    ),
    "pdu": Recipe(
        title="Primal-dual",
        paper="Entesari et al. 2025 (arXiv 2506.05314)",
        formula="(max - mean logit)^2 (forget) + lambda (NLL(retain) - bound), lambda >= 0 adapts",
        parameters=p.Pdu,
        build=_pdu,
    ),
    "po": Recipe(
        title="Preference optimisation by refusals",
        paper="Maini et al. 2024, TOFU (arXiv 2401.06121)",
        formula="NLL(alternate) + NLL(retain)",
        parameters=p.GradDiff,
        build=_built(lambda q: o.alternate_objective(q.retain)),
    ),
    "prompt_decouple": Recipe(
        title="Gradient difference with prompt decoupling",
        paper="SafeEraser, Chen et al. 2025 (arXiv 2502.12520)",
        formula="-NLL(forget) + NLL(retain) + NLL(general)",
        parameters=p.Decoupled,
        build=_built(lambda q: o.decoupled(o.graddiff(q.retain))),
    ),
    "rmu": Recipe(
        title="Representation misdirection",
        paper="Li et al. 2024, WMDP (arXiv 2403.03218)",
        formula="|h - c u|^2 (forget) + |h - h_start|^2 (retain), one layer",
        parameters=p.Rmu,
        build=_built(lambda q: o.rmu_objective(q.layer, q.coefficient, seed=q.seed)),
        cost="1F + 1B up to the layer",
    ),
    "satimp": Recipe(
        title="SatImp",
        paper="Yang et al. 2025 (arXiv 2505.11953)",
        formula="-mean p^beta1 (1-p)^beta2 NLL(forget) + NLL(retain)",
        parameters=p.SatImp,
        build=_built(lambda q: o.weighted_graddiff(q.beta1, q.beta2, q.retain)),
    ),
    "simnpo": Recipe(
        title="SimNPO",
        paper="Fan et al. 2024 (arXiv 2410.07163)",
        formula="(2/beta) mean softplus(beta (log p / length + margin))(forget) + NLL(retain)",
        parameters=p.SimNpo,
        build=_built(lambda q: o.simnpo_objective(q.beta, q.margin, q.retain)),
    ),
    "undial": Recipe(
        title="UNDIAL",
        paper="Dong et al. 2024 (arXiv 2402.10052)",
        formula="CE(start with the target's logit lowered by beta, model)(forget)",
        parameters=p.Undial,
        build=_built(lambda q: o.undial_objective(q.beta, q.retain)),
    ),
    "wga": Recipe(
        title="Weighted gradient ascent",
        paper="Wang et al. 2025 (arXiv 2502.19301)",
        formula="-mean p^beta NLL(forget) + NLL(retain)",
        parameters=p.Wga,
        build=_built(lambda q: o.weighted_graddiff(q.beta, 0.0, q.retain)),
    ),
}
