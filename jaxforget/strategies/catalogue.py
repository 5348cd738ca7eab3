"""Strategies by name, and the table of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxforget.combiners import agem, gem
from jaxforget.combiners.faces import MAX_VECTORS
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.parameters import validated
from jaxforget.engine.step import SUM
from jaxforget.engine.types import Combiner
from jaxforget.objectives.rehearsal import distillation_part, logit_distance_part
from jaxforget.objectives.retain import nll_part
from jaxforget.strategies import parameters as p
from jaxforget.strategies.adapters import o_lora, reg_lora
from jaxforget.strategies.averaging import ema, max_merge, snapshot, task_average, wise_ft
from jaxforget.strategies.path_integral import si
from jaxforget.strategies.quadratic import TRAIN, ewc, mas
from jaxforget.strategies.selection import fpf, kappatune
from jaxforget.strategies.strategy import AGAIN, REPLAY, Rehearsal, Strategy, Term, together
from jaxforget.strategies.subspaces import gpm, ogd


@dataclass(frozen=True)
class Entry:
    """One entry of the catalogue.

    Attributes:
      title: usual name.
      paper: authors, year, arXiv id.
      formula: what it adds or changes, in one line.
      parameters: dataclass of its parameters with defaults.
      build: (name, parameters) -> strategy.
      cost: per step, in forward (F) and backward (B) passes over a batch of each role.
      copies: of the trained parameters kept besides the optimizer's, float32.
    """

    title: str
    paper: str
    formula: str
    parameters: type
    build: Callable[[str, Any], Strategy]
    cost: str = "1F + 1B"
    copies: str = "0"


def _guarded(make: Callable[..., Any], **more: Any) -> Callable[[str, Any], Strategy]:
    """A strategy that is one guard, made from parameters of the same names."""
    return lambda name, q: Strategy(name, guards=(make(**asdict(q)),), **more)


def _replay(name: str, q: p.Replay) -> Strategy:
    if not q.weight:
        return Strategy(name)
    return Strategy(name, {REPLAY: Term(nll_part(REPLAY), q.weight)}, new_weight=q.new_weight)


def _der(name: str, q: p.Der) -> Strategy:
    if not q.alpha:
        return Strategy(name)
    part = logit_distance_part(REPLAY, q.kept)
    return Strategy(name, {"dark": Term(part, q.alpha, source="stored")})


def _derpp(name: str, q: p.DerPlus) -> Strategy:
    terms = dict(_der(name, q).terms)
    if q.beta:
        terms["again"] = Term(nll_part(AGAIN), q.beta)
    return Strategy(name, terms)


def _lwf(name: str, q: p.Lwf) -> Strategy:
    if not q.weight:
        return Strategy(name)
    since = 0 if q.start else 1
    part = distillation_part(TRAIN, q.temperature)
    guards = (snapshot(),) if q.teacher == "live" else ()
    return Strategy(name, {"distil": Term(part, q.weight, since, q.teacher)}, guards)


def _agem(name: str, q: p.Nothing) -> Strategy:
    def combiner(names: tuple[str, ...]) -> Combiner:
        return agem({SUM: 1.0}, memory=names[0])

    return Strategy(name, {"memory": Term(nll_part(REPLAY), None)}, combiner=combiner)


def _gem(name: str, q: p.Gem) -> Strategy:
    def combiner(names: tuple[str, ...]) -> Combiner:
        return gem({SUM: 1.0}, memories=names, margin=q.margin, ridge=q.ridge)

    roles = [f"memory_{task}" for task in range(MAX_VECTORS)]
    terms = {role: Term(nll_part(role), None, task + 1) for task, role in enumerate(roles)}
    return Strategy(name, terms, combiner=combiner, most_tasks=MAX_VECTORS + 1)


def _o_lora(name: str, q: p.OLora) -> Strategy:
    guards = (o_lora(**asdict(q)),)
    return Strategy(name, guards=guards, fresh_adapters=True, most_tasks=q.tasks + 1)


def _fpf(name: str, q: p.Fpf) -> Strategy:
    terms = {"rehearsal": Term(nll_part(REPLAY), 1.0, 0)}
    if q.match == "logits" and q.alpha:
        terms["dark"] = Term(logit_distance_part(REPLAY, q.kept), q.alpha, 0, "stored")
    every = q.every if isinstance(q, p.KFpf) else None
    guard = fpf(q.modules, share=q.share)
    return Strategy(name, rehearsal=Rehearsal(terms, guard, q.steps, every))


def _wise_ft(name: str, q: p.WiseFt) -> Strategy:
    return Strategy(name, guards=(wise_ft(q.share, anchor=q.anchor),), carry=q.carry)


STRATEGIES: Mapping[str, Entry] = {
    "agem": Entry(
        "A-GEM",
        "Chaudhry et al. 2018 (arXiv 1812.00420)",
        "g without its part against the gradient of a draw from the buffer",
        p.Nothing,
        _agem,
        cost="2F + 2B",
    ),
    "cumulative": Entry(
        "Cumulative training",
        "-",
        "NLL(all tasks so far), from the model before",
        p.Nothing,
        lambda name, q: Strategy(name, data="cumulative"),
    ),
    "der": Entry(
        "Dark experience replay",
        "Buzzega et al. 2020 (arXiv 2004.07211)",
        "NLL + alpha |z - z_stored|^2 (buffer)",
        p.Der,
        _der,
        cost="2F + 2B",
    ),
    "derpp": Entry(
        "DER++",
        "Buzzega et al. 2020 (arXiv 2004.07211)",
        "NLL + alpha |z - z_stored|^2 (buffer) + beta NLL (second draw)",
        p.DerPlus,
        _derpp,
        cost="3F + 3B",
    ),
    "ema": Entry(
        "Exponential moving average",
        "-",
        "phi <- m phi + (1 - m) theta; phi is evaluated",
        p.Ema,
        _guarded(ema),
        copies="1",
    ),
    "ewc": Entry(
        "Elastic weight consolidation",
        "Kirkpatrick et al. 2017 (arXiv 1612.00796)",
        "NLL + weight/2 sum_k F_k (theta - theta*_k)^2",
        p.Ewc,
        _guarded(ewc),
        copies="2",
    ),
    "fpf": Entry(
        "Forgetting-prioritised finetuning",
        "Zhao et al. 2023 (arXiv 2304.04158)",
        "NLL; at the end NLL(buffer), some modules move",
        p.Fpf,
        _fpf,
        copies="0, 1 with share",
    ),
    "gem": Entry(
        "GEM",
        "Lopez-Paz & Ranzato 2017 (arXiv 1706.08840)",
        "nearest g that climbs no earlier task's loss",
        p.Gem,
        _gem,
        cost="(1 + tasks) (F + B)",
    ),
    "gpm": Entry(
        "Gradient projection memory",
        "Saha et al. 2021 (arXiv 2103.09762)",
        "update of W without its part on earlier tasks' inputs",
        p.Gpm,
        _guarded(gpm),
        copies="room x in / out of each matrix",
    ),
    "joint": Entry(
        "Joint training",
        "-",
        "NLL(all tasks), from the start",
        p.Nothing,
        lambda name, q: Strategy(name, data="joint"),
    ),
    "k_fpf": Entry(
        "k-FPF",
        "Zhao et al. 2023 (arXiv 2304.04158)",
        "NLL; every tau steps K of NLL(buffer), some modules move",
        p.KFpf,
        _fpf,
        copies="0, 1 with share",
    ),
    "kappatune": Entry(
        "KappaTune",
        "Ludwig 2025 (arXiv 2506.16289)",
        "NLL; only matrices with the lowest condition numbers move",
        p.KappaTune,
        _guarded(kappatune),
    ),
    "lwf": Entry(
        "Learning without forgetting",
        "Li & Hoiem 2016 (arXiv 1606.09282)",
        "NLL + weight T^2 KL(previous model || model) on the new task",
        p.Lwf,
        _lwf,
        cost="1F + 1B, live 2F + 1B",
        copies="0, live 1",
    ),
    "mas": Entry(
        "Memory aware synapses",
        "Aljundi et al. 2018 (arXiv 1711.09601)",
        "NLL + weight sum Omega (theta - theta*)^2",
        p.Mas,
        _guarded(mas),
        copies="2",
    ),
    "max_merge": Entry(
        "MagMax merging",
        "Marczak et al. 2024 (arXiv 2407.06322)",
        "start + entries of largest magnitude of all task vectors, evaluated",
        p.MaxMerge,
        _guarded(max_merge),
        copies="2",
    ),
    "naive": Entry("Naive fine-tuning", "-", "NLL", p.Nothing, lambda name, q: Strategy(name)),
    "o_lora": Entry(
        "O-LoRA",
        "Wang et al. 2023 (arXiv 2310.14152)",
        "NLL + weight sum_s |A_s' A|_1, adapters",
        p.OLora,
        _o_lora,
        copies="half a task's adapters, for each task",
    ),
    "ogd": Entry(
        "Orthogonal gradient descent",
        "Farajtabar et al. 2019 (arXiv 1910.07104)",
        "update without its part in the span of stored gradients",
        p.Ogd,
        _guarded(ogd),
        copies="rank",
    ),
    "reg_lora": Entry(
        "RegLoRA",
        "Chen et al. 2025, SEFE (arXiv 2505.02486)",
        "NLL + weight mean |A B| where earlier tasks changed most, adapters",
        p.RegLora,
        _guarded(reg_lora, fresh_adapters=True),
        copies="one bit an entry of each adapted weight",
    ),
    "replay": Entry(
        "Experience replay",
        "Chaudhry et al. 2019 (arXiv 1902.10486)",
        "new_weight NLL + weight NLL(buffer)",
        p.Replay,
        _replay,
        cost="2F + 2B",
    ),
    "si": Entry(
        "Synaptic intelligence",
        "Zenke et al. 2017 (arXiv 1703.04200)",
        "NLL + weight sum Omega (theta - theta*)^2, Omega from the path",
        p.Si,
        _guarded(si),
        copies="2, exact 3",
    ),
    "task_average": Entry(
        "Average of the tasks' models",
        "-",
        "mean of theta at the ends of tasks, evaluated",
        p.Nothing,
        lambda name, q: Strategy(name, guards=(task_average(),)),
        copies="1",
    ),
    "wise_ft": Entry(
        "WiSE-FT",
        "Wortsman et al. 2022 (arXiv 2109.01903)",
        "(1 - share) theta_start + share theta, evaluated",
        p.WiseFt,
        _wise_ft,
        copies="1",
    ),
}
"""Adding a strategy means adding an entry."""


def names() -> list[str]:
    """Names of all strategies, sorted."""
    return sorted(STRATEGIES)


def get(name: str, **overrides: Any) -> Strategy:
    """A strategy by name, with its paper's defaults unless overridden.

    Args:
      name: see `names`.
      overrides: parameters of the strategy.
    Raises:
      UserError: an unknown strategy or parameter, or a value out of range.
    """
    if name not in STRATEGIES:
        raise UserError(f"strategy: no strategy {name!r}. {did_you_mean(name, STRATEGIES)}")
    entry = STRATEGIES[name]
    return entry.build(name, validated("strategy", name, entry.parameters, overrides))


def from_config(config: Mapping[str, Any] | Sequence[Any] | str) -> Strategy:
    """The strategy that a configuration's `strategy` describes.

    Args:
      config: a name; a mapping with `name` and parameters; or a list of these, used together.
    Raises:
      UserError: as `get` and `together`.
    """
    if isinstance(config, str):
        return get(config)
    if isinstance(config, Mapping):
        if "name" not in config:
            raise UserError(f"strategy: needs a name. Allowed: {', '.join(names())}.")
        return get(str(config["name"]), **{k: v for k, v in config.items() if k != "name"})
    return together(*map(from_config, config))


def table() -> list[dict[str, str]]:
    """One row a strategy, for printing: name, title, what is minimised, needs, cost, paper."""
    return [_row(name) for name in names()]


def _row(name: str) -> dict[str, str]:
    entry, strategy = STRATEGIES[name], get(name)
    roles = [role for role in strategy.roles(1) if role != TRAIN]
    if strategy.rehearsal is not None:
        roles += [role for term in strategy.rehearsal.terms.values() for role in term.part.roles]
    sources = [
        f"{role} of the {source} model" for role, (source, _) in strategy.references(1).items()
    ]
    needs = [*dict.fromkeys(roles), *sources, *(["adapters"] if strategy.fresh_adapters else [])]
    return {
        "name": name,
        "strategy": entry.title,
        "minimises": entry.formula,
        "needs": ", ".join(needs) or "-",
        "cost per step": entry.cost,
        "copies": entry.copies,
        "source": entry.paper,
    }
