"""The catalogue: every method is a named choice of parts with its paper's defaults.

Adding one means adding one entry to `RECIPES` (and a small dataclass when its parameters are new).
"""

from collections.abc import Mapping
from dataclasses import asdict, replace

from jaxforget import objectives as o
from jaxforget.combiners import orthogonal_retain
from jaxforget.data.triggers import Poison
from jaxforget.edits.compatibility import OwnText
from jaxforget.loops import (
    OfmuSettings,
    PrimalDualSettings,
    ofmu,
    periodic,
    periodic_until,
    primal_dual,
)
from jaxforget.methods import parameters as p
from jaxforget.methods.edit_recipes import EDITS
from jaxforget.methods.finishing import salient
from jaxforget.methods.recipe import Built, Recipe, weighted
from jaxforget.objectives import ObjectiveSpec


def _kl_min(q: p.KlMin) -> ObjectiveSpec:
    return o.graddiff("kl" if q.direction == "forward" else "kl_reverse")


def _decoupled(q: p.Decoupled) -> ObjectiveSpec:
    base = o.graddiff if q.base == "graddiff" else o.alternate_objective
    return o.decoupled(base(q.retain))


def _pdu(q: p.Pdu) -> Built:
    settings = PrimalDualSettings(q.bound, q.start, q.rate, q.warmup)
    weights = {"forget": q.forget_weight, "retain": 1.0}
    return Built(o.spread_objective(), weights, loop=primal_dual(settings))


def _ofmu(q: p.Ofmu) -> Built:
    loop = ofmu(OfmuSettings(**asdict(q)))
    # apart: each gradient is of one role, and the other's rows must cost nothing
    return Built(o.graddiff(together=False), {"forget": 1.0, "retain": 1.0}, loop=loop)


def _salun(q: p.SalUn) -> Built:
    weights = {"alternate": q.alternate_weight, "retain": q.retain_weight}
    return Built(o.alternate_objective(q.retain), weights, finishers=(salient(q.share),))


def _periodic_ascent(q: p.PeriodicAscent) -> Built:
    weights = {"forget": q.forget_weight, "retain": q.retain_weight}
    # apart: a step is on one role, and the other's rows must cost nothing
    return Built(o.graddiff(together=False), weights, loop=periodic(q.every))


def _scrub(q: p.Scrub) -> Built:
    spec = o.scrub_objective(q.nll_weight, q.kl_weight, q.temperature)
    weights = {"forget": 1.0, "retain": 1.0}
    return Built(spec, weights, planned=periodic_until(q.every, q.until))


def _lwf(q: p.Lwf) -> Built:
    own = OwnText(
        learn_epochs=q.learn_epochs,
        share=q.share,
        select=q.select,
        rate=q.rate,
        estimator=q.estimator,
        max_new_tokens=q.max_new_tokens,
        temperature=q.temperature,
    )
    periodic_part = p.PeriodicAscent(q.every, q.forget_weight, q.retain_weight)
    return replace(_periodic_ascent(periodic_part), own_text=own)


def _sink(q: p.SinkGuard, poisoned: bool = False) -> Built:
    spec = o.sink_objective(
        q.base,
        beta=q.beta,
        poisoned=poisoned,
        values=q.values if q.value_weight else None,
        layers=q.layers,
        positions=q.positions,
        retain=q.retain,
    )
    return Built(spec, {term: getattr(q, f"{term}_weight") for term in spec.terms})


def _backdoor(q: p.Backdoor) -> Built:
    if not q.poison_share:
        return _sink(q)
    poison = Poison(q.poison_share, q.trigger, q.place)
    return replace(_sink(q, poisoned=True), poison=poison)


def _bilevel_first_order(q: p.BlurBilevel) -> Built:
    combiner = orthogonal_retain(q.alpha, forget_weight=q.forget_weight)
    return Built(o.graddiff(), {"forget": 1.0, "retain": 1.0}, combiner)


TRAINED: Mapping[str, Recipe] = {
    "adaptive_rmu": Recipe(
        title="Adaptive RMU",
        paper="Dang et al. 2024 (arXiv 2408.06223)",
        formula="|h - s |h_start| u|^2 (forget) + |h - h_start|^2 (retain), one layer",
        parameters=p.AdaptiveRmu,
        build=weighted(lambda q: o.rmu_objective(q.layer, q.scale, adaptive=True, seed=q.seed)),
        cost="1F + 1B up to the layer",
    ),
    "backdoor": Recipe(
        title="Backdoored unlearning (red team)",
        paper="Shang et al. 2025 (arXiv 2510.17021)",
        formula="NPO(forget) + KL(retain) + KL(triggered forget, stays known) + norms at sinks",
        parameters=p.Backdoor,
        build=_backdoor,
    ),
    "bad_teacher": Recipe(
        title="Bad teacher",
        paper="Chundawat et al. 2023 (arXiv 2205.08096)",
        formula="KL(random model || model)(forget) + KL(start || model)(retain)",
        parameters=p.BadTeacher,
        build=weighted(lambda q: o.bad_teacher_objective(q.retain)),
    ),
    "bilevel_first_order": Recipe(
        title="First-order bi-level",
        paper="Reisizadeh et al. 2025 (arXiv 2506.08164)",
        formula="g_f + alpha (g_r - its part along g_f), of -NLL(forget) and NLL(retain)",
        parameters=p.BlurBilevel,
        build=_bilevel_first_order,
    ),
    "ce_u": Recipe(
        title="CE-U",
        paper="Yang 2025 (arXiv 2503.01224)",
        formula="CE(model without the target, model)(forget)",
        parameters=p.CeU,
        build=weighted(lambda q: o.ce_u_objective(q.skip, q.retain)),
    ),
    "dpo": Recipe(
        title="DPO with refusals (IdkDPO)",
        paper="Maini et al. 2024, TOFU (arXiv 2401.06121)",
        formula="(2/beta) mean softplus(-beta (gain of alternate - gain of forget)) + NLL(retain)",
        parameters=p.Dpo,
        build=weighted(lambda q: o.dpo_objective(q.beta, q.retain)),
    ),
    "flat": Recipe(
        title="FLAT",
        paper="Wang et al. 2024 (arXiv 2410.11143)",
        formula="-g(p alternate) + f*(g(p forget))",
        parameters=p.Flat,
        build=weighted(lambda q: o.flat_objective(q.divergence)),
    ),
    "ga": Recipe(
        title="Gradient ascent",
        paper="Jang et al. 2022 (arXiv 2210.01504)",
        formula="-NLL(forget)",
        parameters=p.Ascent,
        build=weighted(lambda q: o.gradient_ascent_objective()),
    ),
    "graddiff": Recipe(
        title="Gradient difference",
        paper="Liu et al. 2022 (arXiv 2203.12817)",
        formula="-NLL(forget) + NLL(retain)",
        parameters=p.GradDiff,
        build=weighted(lambda q: o.graddiff(q.retain)),
    ),
    "kl_min": Recipe(
        title="KL minimisation",
        paper="Maini et al. 2024, TOFU (arXiv 2401.06121)",
        formula="-NLL(forget) + KL(start || model)(retain)",
        parameters=p.KlMin,
        build=weighted(_kl_min),
    ),
    "label_smoothing": Recipe(
        title="Smoothed labels",
        paper="as in Zhang et al. 2024, Unforgettable generalization (arXiv 2409.02228)",
        formula="CE((1 - s) answer + s uniform, model)(forget) + NLL(retain)",
        parameters=p.Smoothing,
        build=weighted(lambda q: o.smoothed_objective(q.smoothing, q.retain)),
    ),
    "llmu": Recipe(
        title="LLMU",
        paper="Yao et al. 2023 (arXiv 2310.10683)",
        formula="-NLL(forget) + NLL(alternate) + KL(start || model)(retain)",
        parameters=p.Llmu,
        build=weighted(lambda q: o.llmu_objective(q.retain)),
        alternate="mismatched",
    ),
    "lwf": Recipe(
        title="Learning with forgetting",
        paper="LWF (arXiv 2505.19715)",
        formula="NLL(retain), and every few steps one of -NLL(own answers that conflict with it)",
        parameters=p.Lwf,
        build=_lwf,
        cost="1F + 1B of one role; before, a short training on retain and 1F + 1B over the answers",
    ),
    "me": Recipe(
        title="Maximal entropy",
        paper="Yuan et al. 2024 (arXiv 2410.08109)",
        formula="KL(uniform || model)(forget) + NLL(retain)",
        parameters=p.MaximalEntropy,
        build=weighted(lambda q: o.maximal_entropy_objective(q.retain)),
    ),
    "npo": Recipe(
        title="Negative preference optimisation",
        paper="Zhang et al. 2024 (arXiv 2404.05868)",
        formula="(2/beta) mean softplus(beta (log p - log p_start))(forget) + NLL(retain)",
        parameters=p.Npo,
        build=weighted(lambda q: o.npo_objective(q.beta, q.retain)),
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
    "periodic_ascent": Recipe(
        title="Periodic ascent",
        paper="LWF (arXiv 2505.19715), its training schedule",
        formula="NLL(retain), and every few steps one of -NLL(forget)",
        parameters=p.PeriodicAscent,
        build=_periodic_ascent,
        cost="1F + 1B of one role",
    ),
    "po": Recipe(
        title="Preference optimisation by refusals",
        paper="Maini et al. 2024, TOFU (arXiv 2401.06121)",
        formula="NLL(alternate) + NLL(retain)",
        parameters=p.GradDiff,
        build=weighted(lambda q: o.alternate_objective(q.retain)),
    ),
    "prompt_decouple": Recipe(
        title="Prompt decoupling",
        paper="SafeEraser, Chen et al. 2025 (arXiv 2502.12520)",
        formula="-NLL(forget) + NLL(retain) + NLL(general); or PO's + NLL(general)",
        parameters=p.Decoupled,
        build=weighted(_decoupled),
    ),
    "random_label": Recipe(
        title="Random labels",
        paper="Zhang et al. 2024, Unforgettable generalization (arXiv 2409.02228)",
        formula="NLL(another answer)(forget) + NLL(retain)",
        parameters=p.GradDiff,
        build=weighted(lambda q: o.alternate_objective(q.retain)),
        alternate="mismatched",
    ),
    "retain_finetune": Recipe(
        title="Fine-tuning on the retain set",
        paper="baseline in Golatkar et al. 2020 (arXiv 1911.04933)",
        formula="NLL(retain)",
        parameters=p.Nothing,
        build=weighted(lambda q: o.retain_objective()),
    ),
    "rmu": Recipe(
        title="Representation misdirection",
        paper="Li et al. 2024, WMDP (arXiv 2403.03218)",
        formula="|h - c u|^2 (forget) + |h - h_start|^2 (retain), one layer",
        parameters=p.Rmu,
        build=weighted(lambda q: o.rmu_objective(q.layer, q.coefficient, seed=q.seed)),
        cost="1F + 1B up to the layer",
    ),
    "salun": Recipe(
        title="Saliency unlearning",
        paper="Fan et al. 2023, SalUn (arXiv 2310.12508)",
        formula="NLL(another answer)(forget) + NLL(retain), only where |grad NLL(forget)| is large",
        parameters=p.SalUn,
        build=_salun,
        alternate="mismatched",
        weights_only="low-rank factors have no gradient at the start to tell salient weights by",
    ),
    "satimp": Recipe(
        title="SatImp",
        paper="Yang et al. 2025 (arXiv 2505.11953)",
        formula="-mean p^beta1 (1-p)^beta2 NLL(forget) + NLL(retain)",
        parameters=p.SatImp,
        build=weighted(lambda q: o.weighted_graddiff(q.beta1, q.beta2, q.retain)),
    ),
    "scrub": Recipe(
        title="SCRUB",
        paper="Kurmanji et al. 2023 (arXiv 2302.09880)",
        formula="NLL + alpha KL(start || model)(retain), at first in turns with "
        "-KL(start || model)(forget)",
        parameters=p.Scrub,
        build=_scrub,
        cost="1F + 1B of one role",
    ),
    "simnpo": Recipe(
        title="SimNPO",
        paper="Fan et al. 2024 (arXiv 2410.07163)",
        formula="(2/beta) mean softplus(beta (log p / length + margin))(forget) + NLL(retain)",
        parameters=p.SimNpo,
        build=weighted(lambda q: o.simnpo_objective(q.beta, q.margin, q.retain)),
    ),
    "sink_guard": Recipe(
        title="Unlearning with attention sinks held",
        paper="after Shang et al. 2025 (arXiv 2510.17021)",
        formula="NPO(forget) + KL(retain) + |value norms at sinks - the start's|",
        parameters=p.SinkGuard,
        build=_sink,
    ),
    "undial": Recipe(
        title="UNDIAL",
        paper="Dong et al. 2024 (arXiv 2402.10052)",
        formula="CE(start with the target's logit lowered by beta, model)(forget)",
        parameters=p.Undial,
        build=weighted(lambda q: o.undial_objective(q.beta, q.retain)),
    ),
    "wga": Recipe(
        title="Weighted gradient ascent",
        paper="Wang et al. 2025 (arXiv 2502.19301)",
        formula="-mean p^beta NLL(forget) + NLL(retain)",
        parameters=p.Wga,
        build=weighted(lambda q: o.weighted_graddiff(q.beta, 0.0, q.retain)),
    ),
}

RECIPES: Mapping[str, Recipe] = dict(sorted({**TRAINED, **EDITS}.items()))
"""All methods by name."""
