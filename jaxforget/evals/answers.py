"""Every answer of every set of a suite, scored in one teacher-forced pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxforget.data.records import Record, variants
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.template import Template
from jaxforget.data.tokenise import tokenise
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.evals.likelihood import mean_nll
from jaxforget.evals.teacher_forced import TokenTable, score_set


@dataclass(frozen=True)
class Answers:
    """Where the answers of one set lie among all scored examples.

    Attributes:
      records: the set.
      correct: the answers, one after the other in order of the records.
      paraphrased: indices of the paraphrases, or None; `paraphrase_owner`: record of each.
      perturbed: indices of the wrong answers, or None; `perturbed_owner`: record of each.
    """

    records: Sequence[Record]
    correct: slice
    paraphrased: np.ndarray | None = None
    paraphrase_owner: np.ndarray | None = None
    perturbed: np.ndarray | None = None
    perturbed_owner: np.ndarray | None = None


@dataclass(frozen=True)
class Scored:
    """What the pass found; n answers, M targets.

    Attributes:
      answers: by set.
      tokenised: all answers.
      table: of all answers, with statistics.
      nll: float64 `[n]`, mean NLL per token, nats.
      ended: bool `[n]`: is an answer's last target the end of the text?
      texts: `[n]`, the targets of each answer as text, without special tokens and outer spaces.
    """

    answers: Mapping[str, Answers]
    tokenised: TokenisedSet
    table: TokenTable
    nll: np.ndarray
    ended: np.ndarray
    texts: Sequence[str]

    def columns(self, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Per-target columns of a set's true answers, and their offsets from 0."""
        part = self.answers[name].correct
        offsets = self.table.offsets[part.start : part.stop + 1]
        inside = slice(int(offsets[0]), int(offsets[-1]))
        names = ("logp", "hit", "mean", "second_moment")
        return {each: getattr(self.table, each)[inside] for each in names}, offsets - offsets[0]


def score_answers(
    lm: Any,
    params: Params,
    sets: Mapping[str, Sequence[Record]],
    template: Template,
    max_length: int,
    *,
    alone: Sequence[str] = (),
    rows: int | None = None,
    unseen: int | None = None,
    put: Callable[[Any], Any] | None = None,
    counted: Callable[[str, int, int], None] = lambda *_: None,
) -> Scored:
    """Score the answers, their paraphrases and the wrong answers of all sets.

    Args:
      lm: a `LanguageModel`.
      params: of the model.
      sets: by name.
      template: how a question and an answer become text.
      max_length: most tokens of one example.
      alone: sets of which only the answers themselves are scored.
      rows, unseen, put: see `score_set`.
      counted: told (what, done, total).
    Raises:
      UserError: plain text longer than `max_length`, or columns that only some records have.
    """
    together: list[Record] = []
    placed: dict[str, Answers] = {}

    def add(records: Sequence[Record]) -> slice:
        together.extend(records)
        return slice(len(together) - len(records), len(together))

    def add_variants(records: Sequence[Record], key: Any) -> tuple[Any, Any]:
        if not any(key in record.extra for record in records):
            return None, None
        expanded, owner = variants(records, key)
        place = add(expanded)
        return np.arange(place.start, place.stop), owner

    for name, records in sets.items():
        keys = () if name in alone else ("paraphrased_answer", "perturbed_answer")
        correct = add(records)
        others = [each for key in keys for each in add_variants(records, key)]
        placed[name] = Answers(records, correct, *others)
    tokenised = tokenise(together, lm.tokenizer, template, max_length=max_length)
    if len(tokenised) != len(together):
        raise UserError("evaluate: some rows are plain text longer than max_length; raise it")
    table = score_set(
        lm.score,
        params,
        tokenised,
        rows=rows,
        stats=True,
        share_prompts=True,
        unseen=unseen,
        put=put,
        counted=lambda done, total: counted("scoring", done, total),
    )
    last = tokenised.targets[tokenised.offsets[1:] - 1]
    ends = [*lm.eos_ids, *lm.tokenizer.all_special_ids]
    return Scored(
        placed,
        tokenised,
        table,
        mean_nll(table.logp, table.offsets),
        np.isin(last, ends),
        _texts(tokenised, lm.tokenizer),
    )


def _texts(tokenised: TokenisedSet, tokenizer: Any) -> list[str]:
    labelled = tokenised.targets[tokenised.mask]
    bounds = tokenised.label_offsets[1:-1]
    answers = [part.tolist() for part in np.split(labelled, bounds)]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
