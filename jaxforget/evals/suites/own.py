"""The whole suite on one's own data: any file with questions and answers, by naming its columns.

Every set gives answer probability, perplexity, memorisation and, from generated answers, ROUGE and
the shares of refusals and gibberish; with wrong answers truth ratios too. A holdout set adds
membership inference, an oracle forget quality and PrivLeak.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge

from jaxforget.data.records import Record, variants
from jaxforget.data.sources import Source, load_records
from jaxforget.engine.errors import UserError
from jaxforget.evals import metrics
from jaxforget.evals.families import forget_quality, likelihoods, memorised, norms_of_both
from jaxforget.evals.generated import texts_of
from jaxforget.evals.membership import FORGET, HOLDOUT, Rows, membership
from jaxforget.evals.part import Part, joined
from jaxforget.evals.suites.suite import Judged, SuiteResult, result_of

RETAIN = "retain"
_RESERVED = (FORGET, RETAIN, HOLDOUT, "mia", "model")
_USEFUL = ("prob", "rouge", "truth_ratio")


@dataclass(frozen=True)
class OwnSuite:
    """The suite on one's own data.

    Attributes:
      suite: "own".
      forget, retain: sets; their `columns` say where questions and answers are, and, where there
        are any, `paraphrased_answer` and `perturbed_answer`.
      holdout: examples of the forget set's kind that no model has seen.
      others: further sets that are to be kept, by the name that their metrics begin with.
      oracle: results.json (or run directory) of a model that never saw the forget set.
      generate: also generate answers and judge them.
      gradient_norms: also that membership attack; a backward pass for every example of forget
        and holdout.
      max_new_tokens: longest generated answer.
      batch_size: prompts generated at a time.
      limit: rows used of each set; None: all.
      peer_compat: reproduce the peer's known faults where published numbers depend on them.
    """

    suite: Literal["own"] = "own"
    forget: Source | None = None
    retain: Source | None = None
    holdout: Source | None = None
    others: Mapping[str, Source] = field(default_factory=dict)
    oracle: str | None = None
    generate: bool = True
    gradient_norms: bool = False
    max_new_tokens: Annotated[int, Ge(1)] = 200
    batch_size: Annotated[int, Ge(1)] = 32
    limit: Annotated[int, Ge(1)] | None = None
    peer_compat: bool = False


def read(settings: OwnSuite) -> dict[str, list[Record]]:
    """The suite's records by set.

    Raises:
      UserError: no set, a set that cannot be read, a name that is taken, or sets that make no
        comparison.
    """
    for name in settings.others:
        taken = name in _RESERVED or name.partition("_")[0] in (FORGET, RETAIN, HOLDOUT)
        if taken or not name.isidentifier():
            raise UserError(f"evaluate.others: {name!r} cannot be the name of a set of one's own")
    sources = {name: getattr(settings, name) for name in (FORGET, RETAIN, HOLDOUT)}
    sources = {name: source for name, source in sources.items() if source is not None}
    sources |= settings.others
    if not sources:
        raise UserError("evaluate: names no set. Allowed: forget, retain, holdout, others.")
    if HOLDOUT in sources and FORGET not in sources:
        raise UserError("evaluate.holdout: it is compared with evaluate.forget; name that too")
    if settings.gradient_norms and HOLDOUT not in sources:
        raise UserError("evaluate.gradient_norms: they are compared with those of evaluate.holdout")
    sets = {name: load_records(source)[: settings.limit] for name, source in sources.items()}
    for records in sets.values():
        for key in ("perturbed_answer", "paraphrased_answer"):
            if any(key in record.extra for record in records):
                variants(records, key)
    return sets


def evaluate(
    judged: Judged,
    sets: Mapping[str, Sequence[Record]],
    settings: OwnSuite,
    oracle: Rows | None = None,
) -> SuiteResult:
    """Judge a model on one's own sets.

    Args:
      judged: see `Judged`.
      sets: see `read`.
      settings: see `OwnSuite`.
      oracle: rows of the oracle by set, see `SuiteResult.rows`.
    Returns:
      Metrics begin with the set's name, but extraction_strength and exact_memorization of the
      forget set, as in TOFU. `model_utility` is the harmonic mean of probability, ROUGE and truth
      ratio, as far as there are any, of all sets but forget and holdout.
    Raises:
      UserError: an oracle of other rows.
    """
    compat = settings.peer_compat
    if compat:
        judged = replace(judged, template=replace(judged.template, peer_compat=True))
    scored = judged.scored(sets, alone=(HOLDOUT,))
    parts: list[Part] = []
    for name in sets:
        prefix = "" if name == FORGET else f"{name}_"
        parts.append(likelihoods(name, name, scored, peer_compat=compat))
        parts.append(memorised(name, scored, prefix=prefix, peer_compat=compat))
    if HOLDOUT in sets:
        norms = None
        if settings.gradient_norms:
            lm, params, template = judged.lm, judged.params, judged.template
            length, told = judged.max_length, judged.counted
            norms = norms_of_both(lm, params, sets, template, length, told, peer_compat=compat)
        parts.append(membership(scored, oracle=oracle, norms=norms, peer_compat=compat))
    asked = {name: records for name, records in sets.items() if name != HOLDOUT}
    prompted = {name: some for name, some in asked.items() if all(each.prompt for each in some)}
    generations = []
    if settings.generate:
        if prompted:
            sizes = (settings.max_new_tokens, settings.batch_size)
            generations = judged.generated(prompted, *sizes, scored=None if compat else scored)
        parts += [texts_of(name, name, generations) for name in prompted]
        parts += [_unanswered(name) for name in asked if name not in prompted]
    parts.append(forget_quality(joined(parts).rows, oracle))
    parts.append(_utility(joined(parts).metrics(), [name for name in asked if name != FORGET]))
    return result_of(parts, generations)


def _unanswered(name: str) -> Part:
    why = "the set holds plain text, which asks nothing"
    return Part(values={f"{name}_rouge": None}, reasons={f"{name}_rouge": why})


def _utility(values: Mapping[str, float | None], kept: Sequence[str]) -> Part:
    found = {f"{name}_{key}": values.get(f"{name}_{key}") for name in kept for key in _USEFUL}
    there = {name: value for name, value in found.items() if value is not None}
    if not there:
        why = "no set that is to be kept (evaluate.retain, evaluate.others)"
        return Part(values={"model_utility": None}, reasons={"model_utility": why})
    return Part(values={"model_utility": metrics.harmonic_mean(there)})
