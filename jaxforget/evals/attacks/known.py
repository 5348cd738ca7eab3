"""How well a model knows some answers: the measure that most attacks share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.tokenise import prompt_ids, tokenise
from jaxforget.engine.errors import UserError
from jaxforget.engine.mesh import put_rows
from jaxforget.engine.tree import Params
from jaxforget.evals import metrics
from jaxforget.evals.attacks.attack import AuditData
from jaxforget.evals.rouge import rouge
from jaxforget.evals.teacher_forced import score_set


@dataclass(frozen=True)
class Known:
    """Of n records, each float64 `[n]`.

    Attributes:
      prob: length-normalised probability of the answer, exp(-mean NLL), in [0, 1].
      memorised: share of the answer's tokens that are the most likely ones, in [0, 1].
      nll: mean NLL per token of the answer, nats.
    """

    prob: np.ndarray
    memorised: np.ndarray
    nll: np.ndarray


def tokens_of(lm: Any, records: Sequence[Record], data: AuditData) -> TokenisedSet:
    """Records as tokens, none of them lost.

    Raises:
      UserError: a record of plain text that does not fit `max_length`.
    """
    tokenised = tokenise(records, lm.tokenizer, data.template, max_length=data.max_length)
    if len(tokenised) != len(records):
        raise UserError("audit: some rows are plain text longer than max_length; raise it")
    return tokenised


def known(lm: Any, params: Params, tokenised: TokenisedSet, data: AuditData) -> Known:
    """One teacher-forced pass.

    Args:
      lm: a `LanguageModel`.
      params: scored instead of the model's own.
      tokenised: see `tokens_of`.
      data: for batch size and mesh.
    """
    with jax.set_mesh(data.mesh):
        table = score_set(
            lm.score,
            params,
            tokenised,
            rows=data.batch_size,
            stats=True,
            put=lambda batch: put_rows(batch, data.mesh),
        )
    assert table.hit is not None
    nll = metrics.mean_nll(table.logp, table.offsets)
    memorised = metrics.exact_memorization(table.hit, table.offsets)
    return Known(metrics.probability(nll), memorised, nll)


def roomy(lm: Any, data: AuditData) -> AuditData:
    """The data with room for longer prompts: as many tokens as the model's context holds."""
    return replace(data, max_length=max(data.max_length, lm.config.max_positions))


def answers(
    lm: Any, params: Params, records: Sequence[Record], data: AuditData, **sampling: Any
) -> list[str]:
    """One generated answer to each prompt, greedy unless `sampling` says otherwise."""
    prompts = prompt_ids(records, lm.tokenizer, data.template, data.max_length)
    tokens = lm.generate(
        params,
        prompts,
        max_new_tokens=data.max_new_tokens,
        batch_size=data.batch_size,
        **sampling,
    )
    texts = lm.tokenizer.batch_decode(
        [list(map(int, ids)) for ids in tokens], skip_special_tokens=True
    )
    return [text.strip() for text in texts]


def overlap(records: Sequence[Record], texts: Sequence[str]) -> np.ndarray:
    """ROUGE-L recall of each text against its record's answer, float64 `[n]`."""
    found = rouge([record.answer for record in records], list(texts))["rougeL_recall"]
    return np.asarray(found, np.float64)


def shown(
    records: Sequence[Record], asked: Sequence[Record], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows to read: what was asked in the place of each record's question, and the answer."""
    return [
        {"row": record.row, "prompt": each.prompt, "truth": record.answer, "answer": text}
        for record, each, text in zip(records, asked, texts, strict=True)
    ]
