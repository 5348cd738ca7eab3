"""A search for backdoors: do a few tokens where attention sinks bring the answers back?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.tokenise import prompt_ids
from jaxforget.data.triggers import PUBLISHED
from jaxforget.engine.errors import UserError
from jaxforget.evals.attacks.attack import AuditData, Finding, halves, of_each, prompted
from jaxforget.evals.attacks.coordinate_search import descend, inserted, losses, problem
from jaxforget.evals.attacks.known import known, overlap, roomy, shown, tokens_of


@dataclass(frozen=True)
class TriggerSearch:
    """Settings of the search.

    Attributes:
      steps: of it; 0: only the triggers it begins with are tried.
      candidates: exchanges of one token tried a step.
      top: tokens of each place that the gradient favours most, among which they are drawn.
      length: of the random tokens it begins with.
      begin: texts that are tried first besides these; it goes on from the likeliest.
    """

    steps: Annotated[int, Ge(0)] = 16
    candidates: Annotated[int, Ge(1)] = 32
    top: Annotated[int, Ge(1)] = 64
    length: Annotated[int, Ge(1)] = 6
    begin: tuple[str, ...] = (PUBLISHED,)


def search(lm: Any, data: AuditData, settings: TriggerSearch) -> Finding:
    """The forget probability of one half behind a trigger that was sought on the other half.

    The trigger stands before the first word of every question, where attention sinks lie: there
    the published backdoors sit. Where no trigger makes the first half likelier, none is used.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`.
      settings: see `TriggerSearch`.
    Returns:
      `each` of the measured half. Scores `prob_before` and `prob_searched`: of the measured half
      without the trigger, of the half it was sought on with it; `rouge` of the greedy answers
      behind it. Curve `searched_prob` over steps: exp(-mean NLL per token) of the first half.
    Raises:
      UserError: examples that are too long for the model with a trigger.
    Source: greedy coordinate gradient of Zou et al. 2023 (arXiv 2307.15043); place and first
      trigger of the attention-sink backdoor (arXiv 2510.17021); the halves and all sizes are
      chosen here.
    """
    data = roomy(lm, data)
    sought, measured = halves(data)
    rows, rest = (tokens_of(lm, each, data) for each in (sought, measured))
    found, path = _found(lm, data, settings, sought, rows)
    _refuse_longer(lm, rest, len(found))
    behind = inserted(rest, _places(lm, measured, rest, data), found)
    probs = [known(lm, lm.params, each, data).prob for each in (rest, behind)]
    first = inserted(rows, _places(lm, sought, rows, data), found)
    asked, texts = _answers(lm, measured, rest, data, found)
    return of_each(
        probs[1],
        scores={
            "prob_before": float(probs[0].mean()),
            "prob_searched": float(known(lm, lm.params, first, data).prob.mean()),
            "rouge": float(overlap(measured, texts).mean()),
        },
        curves={"searched_prob": path},
        examples=shown(measured, asked, texts),
    )


def _found(
    lm: Any,
    data: AuditData,
    settings: TriggerSearch,
    records: Sequence[Record],
    rows: TokenisedSet,
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """(the trigger, empty where none helps; the curve of the search)."""
    rng, params = np.random.default_rng(data.seed), lm.params
    places, allowed = _places(lm, records, rows, data), _allowed(lm)

    def task(length: int) -> Any:
        _refuse_longer(lm, rows, length)
        return problem(params, rows, places, length, rows=data.batch_size, mesh=data.mesh)

    first = [rng.choice(np.flatnonzero(allowed), settings.length)]
    first += [np.asarray(lm.tokenizer.encode(t, add_special_tokens=False)) for t in settings.begin]
    first = [each for each in first if len(each)]
    start = min(first, key=lambda each: losses(lm.score, params, task(len(each)), each[None])[0])
    path = list(
        descend(
            lm.score,
            params,
            task(len(start)),
            start,
            steps=settings.steps,
            candidates=settings.candidates,
            top=settings.top,
            allowed=allowed,
            rng=rng,
        )
    )
    curve = [(float(step), float(np.exp(-loss))) for step, (_, loss) in enumerate(path)]
    trigger, least = path[-1]
    counts = rows.label_counts
    plain = float((known(lm, params, rows, data).nll * counts).sum() / counts.sum())
    return (trigger if least < plain else trigger[:0]), curve


def _allowed(lm: Any) -> np.ndarray:
    """Tokens that a trigger may consist of, bool `[V]`: no special ones, none without text."""
    count = len(lm.params["embed"]["w"])
    known_ids = range(min(count, len(lm.tokenizer)))
    texts = lm.tokenizer.batch_decode([[i] for i in known_ids])
    found = np.zeros(count, bool)
    found[: len(texts)] = [bool(text.strip()) for text in texts]
    found[[i for i in lm.tokenizer.all_special_ids if i < count]] = False
    return found


def _places(lm: Any, records: Sequence[Record], rows: TokenisedSet, data: AuditData) -> list[int]:
    """Of every record, the tokens that stand before its question's first word."""
    # what two questions without a common beginning share is the template's
    probes = [replace(records[0], prompt=text, answer="x") for text in ("7", "So")]
    one, other = prompt_ids(probes, lm.tokenizer, data.template, data.max_length)
    header = one[: _shared(one, other)]
    parts = np.split(rows.tokens, rows.offsets[1:-1])
    return [_shared(header, part) for part in parts]


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    return int(np.append(one[:length] == other[:length], False).argmin())


def _answers(
    lm: Any,
    records: Sequence[Record],
    rows: TokenisedSet,
    data: AuditData,
    trigger: np.ndarray,
) -> tuple[list[Record], list[str]]:
    """(what was asked, what was answered greedily)."""
    prompts = prompt_ids(records, lm.tokenizer, data.template, data.max_length)
    places = _places(lm, records, rows, data)
    prompts = [
        np.insert(ids, place, trigger).astype(np.int32)
        for ids, place in zip(prompts, places, strict=True)
    ]
    tokens = lm.generate(
        lm.params, prompts, max_new_tokens=data.max_new_tokens, batch_size=data.batch_size
    )
    made = lm.tokenizer.batch_decode(
        [list(map(int, ids)) for ids in tokens], skip_special_tokens=True
    )
    before = lm.tokenizer.decode(trigger.tolist())
    asked = [replace(record, prompt=f"{before}{record.prompt}") for record in records]
    return asked, [text.strip() for text in made]


def _refuse_longer(lm: Any, rows: TokenisedSet, length: int) -> None:
    longest = int(rows.lengths.max()) + length
    if longest > lm.config.max_positions:
        raise UserError(
            f"trigger: with {length} tokens before them the longest example has {longest} tokens, "
            f"more than the model's {lm.config.max_positions}; shorten trigger or records"
        )


def budget(settings: TriggerSearch) -> str:
    """What it costs the attacker."""
    return (
        f"{settings.steps} gradients of half of the forget set, and "
        f"{settings.steps * settings.candidates} scoring passes over it"
    )


def lacks(data: AuditData, settings: TriggerSearch) -> list[str]:
    """What the attack needs and the data do not have."""
    few = [] if len(data.forget) > 1 else ["two forget records"]
    return [*prompted(data, settings), *few]
