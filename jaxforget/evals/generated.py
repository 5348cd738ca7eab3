"""The generation pass of a suite, and what is read from its texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxforget.data.records import Record
from jaxforget.data.template import Template
from jaxforget.data.tokenise import prompt_ids
from jaxforget.engine.tree import Params
from jaxforget.evals import metrics
from jaxforget.evals.answers import Scored
from jaxforget.evals.begun import known_beginnings
from jaxforget.evals.part import Part
from jaxforget.evals.rouge import rouge


def generate_answers(
    lm: Any,
    params: Params,
    sets: Mapping[str, Sequence[Record]],
    template: Template,
    max_length: int,
    max_new_tokens: int,
    batch_size: int,
    counted: Callable[[str, int, int], None],
    unseen: int | None = None,
    scored: Scored | None = None,
) -> list[dict[str, Any]]:
    """One greedy answer to every question of every set.

    Args:
      lm: a `LanguageModel`.
      params: of the model.
      sets: by name.
      template: how a question and an answer become text.
      max_length: most tokens of a prompt.
      max_new_tokens: longest answer.
      batch_size: prompts continued at a time.
      counted: told (what, done, total).
      unseen: a token that is left out of prompts.
      scored: a teacher-forced pass over some of the sets with the same model and template, which
        tells what answers begin with, see `known_beginnings`.
    Returns:
      Dicts with "set", "row", "prompt", "truth", "answer", set after set.
    """
    asked = [(name, record) for name, records in sets.items() for record in records]
    prompts = prompt_ids([record for _, record in asked], lm.tokenizer, template, max_length)
    if unseen is not None:
        prompts = [prompt[prompt != unseen] for prompt in prompts]
    begun = _begun(sets, prompts, scored)
    counted("generating", 0, len(asked))
    tokens = lm.generate(
        params, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, begun=begun
    )
    counted("generating", len(asked), len(asked))
    texts = lm.tokenizer.batch_decode(
        [list(map(int, ids)) for ids in tokens], skip_special_tokens=True
    )
    return [
        {
            "set": name,
            "row": record.row,
            "prompt": record.prompt,
            "truth": record.answer,
            "answer": text.strip(),
        }
        for (name, record), text in zip(asked, texts, strict=True)
    ]


def _begun(
    sets: Mapping[str, Sequence[Record]], prompts: Sequence[np.ndarray], scored: Scored | None
) -> list[np.ndarray]:
    """What the answers to the prompts, set after set, are known to begin with."""
    found: list[np.ndarray] = []
    for name, records in sets.items():
        mine = prompts[len(found) : len(found) + len(records)]
        if scored is not None and name in scored.answers:
            found += known_beginnings(scored, name, mine)
        else:
            found += [np.zeros(0, np.int32)] * len(mine)
    return found


def texts_of(name: str, short: str, generations: Sequence[Mapping[str, Any]]) -> Part:
    """How the answers of one set overlap with the true ones, and which are no answers.

    Args:
      name: of the set; `short` begins its metrics' names.
      generations: see `generate_answers`; those of other sets are passed over.
    """
    mine = [each for each in generations if each["set"] == name]
    answers = [each["answer"] for each in mine]
    overlap = rouge([each["truth"] for each in mine], answers)["rougeL_recall"]
    signs = metrics.gibberish_heuristics(answers).values()
    means = {
        f"{short}_rouge": overlap,
        f"{short}_refusal_rate": metrics.refusals(answers).astype(np.float64),
        f"{short}_gibberish_rate": np.any(list(signs), axis=0).astype(np.float64),
    }
    return Part(means, rows={name: {"rouge": overlap}})
