"""Every objective on the toy model, with its float64 definition."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from objectives import toy_lm as toy

from jaxforget import objectives as o
from jaxforget.objectives.representation import random_direction

FORGET, RETAIN = toy.examples(1, 7), toy.examples(2, 11)
ALTERNATE, GENERAL = toy.examples(3, 7), toy.examples(4, 5)
PARAMS, START, RANDOM = toy.params(0), toy.params(9), toy.params(5)
SPECS = {
    "ga": o.gradient_ascent_objective(),
    "graddiff": o.graddiff("nll"),
    "graddiff_apart": o.graddiff("nll", together=False),
    "graddiff_kl": o.graddiff("kl"),
    "graddiff_kl_reverse": o.graddiff("kl_reverse"),
    "wga": o.weighted_graddiff(0.8, retain="none"),
    "satimp": o.weighted_graddiff(1.5, 0.5),
    "npo": o.npo_objective(0.7, retain="none"),
    "npo_nll": o.npo_objective(0.7),
    "npo_kl": o.npo_objective(0.7, retain="kl", together=False),
    "simnpo": o.simnpo_objective(2.5, 0.3),
    "dpo": o.dpo_objective(0.4, retain="none"),
    "dpo_nll": o.dpo_objective(0.4),
    "po": o.alternate_objective(),
    "llmu": o.llmu_objective(),
    "decoupled": o.decoupled(o.graddiff()),
    "flat_tv": o.flat_objective("tv"),
    "flat_kl": o.flat_objective("kl"),
    "flat_pearson": o.flat_objective("pearson"),
    "flat_js": o.flat_objective("js"),
    "ce_u": o.ce_u_objective(),
    "ce_u_all": o.ce_u_objective(0),
    "undial": o.undial_objective(3.0),
    "entropy": o.maximal_entropy_objective(),
    "spread": o.spread_objective("none"),
    "bad_teacher": o.bad_teacher_objective(),
    "smoothed": o.smoothed_objective(0.3),
    "scrub": o.scrub_objective(0.7, 0.4, 3.0),
    "retain": o.retain_objective(),
    "forget_nll": o.forget_nll_objective(),
    "rmu": o.rmu_objective(0, 2.5, seed=3),
    "rmu_adaptive": o.rmu_objective(0, 0.5, adaptive=True, seed=3),
}


def batches(max_targets="bound", forget_order=None, retain_order=None, rows=(4, 4)):
    return {
        "forget": toy.pack(FORGET, rows[0], 3, max_targets, forget_order),
        "alternate": toy.pack(ALTERNATE, rows[0], 3, max_targets, forget_order),
        "retain": toy.pack(RETAIN, rows[1], 5, max_targets, retain_order),
        "general": toy.pack(GENERAL, rows[1], 2, max_targets),
    }


def evaluate(spec, some, params=PARAMS):
    """Terms, metrics, gradient of each term; references made from what the spec declares."""
    some = {role: some[role] for role in spec.needs.roles}
    cached = {}
    for role, fields in spec.needs.reference.items():
        whole = toy.reference(RANDOM if role in spec.needs.random else START, some[role])
        if "hidden" not in fields:
            whole = replace(whole, hidden=None, head=None)
        cached[role] = whole if "residual" in fields else replace(whole, residual=None)

    return _terms_of(spec)(params, some, cached)


def _terms_of(spec):
    """One program for each objective and shape, however often it is evaluated."""
    if id(spec) not in _PROGRAMS:
        _PROGRAMS[id(spec)] = spec, jax.jit(partial(_terms, spec))
    return _PROGRAMS[id(spec)][1]


_PROGRAMS = {}  # with the objective, whose id is then no other's


def _terms(spec, params, some, cached):
    pull_back = jax.vjp(lambda p: spec.objective(toy.score, p, some, cached), params)
    (terms, metrics), pull = pull_back
    zero = jax.tree.map(jnp.zeros_like, (terms, metrics))
    gradients = {}
    for name in terms:
        seed = ({**zero[0], name: jnp.ones(())}, zero[1])
        (gradients[name],) = pull(seed)
    return terms, metrics, gradients


def close(a, b, tolerance=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


# --- float64, example by example ---


def flat_targets(some):
    return np.concatenate([targets[labelled] for _, targets, labelled in some])


def all_logps(p, some):
    """Log-probabilities of every word at labelled positions: `[M, V]`."""
    return np.concatenate([toy.log_softmax(p, tokens)[labelled] for tokens, _, labelled in some])


def all_logits(p, some):
    return np.concatenate(
        [np.tanh(p["embed"][t] @ p["mix"])[labelled] @ p["head"].T for t, _, labelled in some]
    )


def first_ones(some):
    """True at the first labelled target of each example, over all labelled targets."""
    return np.concatenate([np.arange(labelled.sum()) == 0 for _, _, labelled in some])


def constant(function):
    """The function at PARAMS, whatever it is called with: what `stop_gradient` holds still."""
    value = function(toy.float64(PARAMS))
    return lambda _: value


def weighted64(beta, beta_unlearned):
    def weight(p):
        prob = np.exp(np.concatenate(toy.token_logps(p, FORGET)))
        return prob**beta * (1 - prob) ** beta_unlearned

    held = constant(weight)
    return lambda p: (held(p) * np.concatenate(toy.token_logps(p, FORGET))).mean()


def simnpo64(p, beta, margin):
    means = [v.mean() for v in toy.token_logps(p, FORGET)]
    return np.mean([2 / beta * np.logaddexp(0, beta * (m + margin)) for m in means])


def dpo64(p, beta):
    start, losses = toy.float64(START), []
    for role in (FORGET, ALTERNATE):
        pairs = zip(toy.token_logps(p, role), toy.token_logps(start, role), strict=True)
        losses.append(np.asarray([a.sum() - b.sum() for a, b in pairs]))
    return np.mean(2 / beta * np.logaddexp(0, -beta * (losses[1] - losses[0])))


def flat64(p, kind):
    f, a = (
        np.asarray([np.exp(v).mean() for v in toy.token_logps(p, role)])
        for role in (FORGET, ALTERNATE)
    )
    if kind == "js":
        return np.mean(np.log(1 + np.exp(-a)) + f + np.log(1 + np.exp(-f)) - 2 * np.log(2))
    g = {"tv": lambda x: np.tanh(x) / 2}.get(kind, lambda x: x)
    conjugate = {"tv": lambda x: x, "kl": lambda x: np.exp(x - 1)}.get(kind, lambda x: x**2 / 4 + x)
    return np.mean(-g(a) + conjugate(g(f)))


def ce_u64(skip):
    keep = ~first_ones(FORGET) if skip else np.ones(len(flat_targets(FORGET)), bool)

    def goal(p):
        probs = np.exp(all_logps(p, FORGET))
        probs[np.arange(len(probs)), flat_targets(FORGET)] = 0
        return probs / probs.sum(-1, keepdims=True)

    held = constant(goal)
    return lambda p: -(held(p) * all_logps(p, FORGET)).sum(-1)[keep].mean()


def undial64(p, beta):
    lowered = all_logits(toy.float64(START), FORGET)
    lowered[np.arange(len(lowered)), flat_targets(FORGET)] -= beta
    goal = np.exp(lowered - lowered.max(-1, keepdims=True))
    goal /= goal.sum(-1, keepdims=True)
    return -(goal * all_logps(p, FORGET)).sum(-1).mean()


def spread64(p):
    logits = all_logits(p, FORGET)
    return ((logits.max(-1) - logits.mean(-1)) ** 2).mean()


def entropy64(p):
    return -all_logps(p, FORGET).mean(-1).mean() - np.log(toy.VOCAB)


def inner(p, some):
    return [(p["embed"][tokens] @ p["mix"])[labelled] for tokens, _, labelled in some]


def distance64(p, some, goals):
    pairs = zip(inner(p, some), goals, strict=True)
    return np.mean([((states - goal) ** 2).mean() for states, goal in pairs])


def rmu64(adaptive):
    unit = np.asarray(random_direction(toy.WIDTH, 3), np.float64)
    start = inner(toy.float64(START), FORGET)
    goals = [2.5 * unit for _ in FORGET]
    if adaptive:
        goals = [0.5 * np.linalg.norm(s, axis=-1, keepdims=True) * unit for s in start]
    return lambda p: distance64(p, FORGET, goals)


def expected_terms(name):
    start = toy.float64(START)
    retain = lambda p: toy.nll64(p, RETAIN)  # noqa: E731
    kl = lambda p: toy.kl64(p, start, RETAIN)  # noqa: E731
    ascent = lambda p: -toy.nll64(p, FORGET)  # noqa: E731
    npo = lambda p: toy.npo64(p, start, FORGET, 0.7)  # noqa: E731
    alternate = lambda p: toy.nll64(p, ALTERNATE)  # noqa: E731
    still = lambda p: distance64(p, RETAIN, inner(start, RETAIN))  # noqa: E731
    return {
        "ga": {"forget": ascent},
        "graddiff": {"forget": ascent, "retain": retain},
        "graddiff_apart": {"forget": ascent, "retain": retain},
        "graddiff_kl": {"forget": ascent, "retain": kl},
        "graddiff_kl_reverse": {"forget": ascent, "retain": lambda p: toy.kl64(start, p, RETAIN)},
        "wga": {"forget": weighted64(0.8, 0)},
        "satimp": {"forget": weighted64(1.5, 0.5), "retain": retain},
        "npo": {"forget": npo},
        "npo_nll": {"forget": npo, "retain": retain},
        "npo_kl": {"forget": npo, "retain": kl},
        "simnpo": {"forget": lambda p: simnpo64(p, 2.5, 0.3), "retain": retain},
        "dpo": {"forget": lambda p: dpo64(p, 0.4)},
        "dpo_nll": {"forget": lambda p: dpo64(p, 0.4), "retain": retain},
        "po": {"alternate": alternate, "retain": retain},
        "llmu": {"forget": ascent, "alternate": alternate, "retain": kl},
        "decoupled": {
            "forget": ascent,
            "retain": retain,
            "decouple": lambda p: toy.nll64(p, GENERAL),
        },
        **{
            f"flat_{kind}": {"forget": lambda p, kind=kind: flat64(p, kind)}
            for kind in ("tv", "kl", "pearson", "js")
        },
        "ce_u": {"forget": ce_u64(1)},
        "ce_u_all": {"forget": ce_u64(0)},
        "undial": {"forget": lambda p: undial64(p, 3.0)},
        "entropy": {"forget": entropy64, "retain": retain},
        "spread": {"forget": spread64},
        "bad_teacher": {
            "forget": lambda p: toy.kl64(p, toy.float64(RANDOM), FORGET),
            "retain": kl,
        },
        "smoothed": {
            "forget": lambda p: (
                0.7 * toy.nll64(p, FORGET) - 0.3 * all_logps(p, FORGET).mean(-1).mean()
            ),
            "retain": retain,
        },
        "scrub": {
            "forget": lambda p: -9 * toy.kl64(p, start, FORGET, 3.0),
            "retain": lambda p: (
                0.7 * toy.nll64(p, RETAIN) + 0.4 * 9 * toy.kl64(p, start, RETAIN, 3.0)
            ),
        },
        "retain": {"retain": retain},
        "forget_nll": {"forget": lambda p: toy.nll64(p, FORGET)},
        "rmu": {"forget": rmu64(False), "retain": still},
        "rmu_adaptive": {"forget": rmu64(True), "retain": still},
    }[name]
