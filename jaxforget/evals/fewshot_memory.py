"""Recognition and recall of texts that were seen a few times, and how long either lasts.

Source: Orhan 2023 (arXiv 2303.17557).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.evals.checks import paired
from jaxforget.evals.rouge import rouge


def recognition(losses: np.ndarray, foils: np.ndarray) -> np.ndarray:
    """Two-alternative forced choice: is a studied text likelier than its foil? 1 or 0, `[n]`.

    Args:
      losses: mean negative log-likelihood a token of each studied text `[n]`.
      foils: of the text that each is told from `[n]`.
    Returns:
      float64; ties are errors. 0.5 on average where the two are of one kind and neither was seen.
    """
    ours, theirs = paired("recognition", losses, foils)
    return (ours < theirs).astype(np.float64)


def cue_length(count: int) -> int:
    """Tokens of a text of `count` that are given: the first half, rounded down, at least one."""
    return max(count // 2, 1)


def continuations(
    lm: Any, params: Params, texts: Sequence[np.ndarray], *, batch_size: int
) -> list[np.ndarray]:
    """Greedy continuations of the first halves of texts, as long as the second halves.

    Args:
      lm: a `LanguageModel`.
      params: of the model.
      texts: tokens of each, at least two.
      batch_size: texts continued at a time.
    Returns:
      int32 tokens of each; an end-of-sequence token does not stop them.
    """
    cues = [np.asarray(text[: cue_length(len(text))], np.int32) for text in texts]
    longest = max(len(text) - len(cue) for text, cue in zip(texts, cues, strict=True))
    written = lm.generate(params, cues, max_new_tokens=longest, eos_ids=(), batch_size=batch_size)
    wanted = [len(text) - len(cue) for text, cue in zip(texts, cues, strict=True)]
    return [np.asarray(ids)[:count] for ids, count in zip(written, wanted, strict=True)]


def recall(
    texts: Sequence[np.ndarray], written: Sequence[np.ndarray], tokenizer: Any = None
) -> dict[str, np.ndarray]:
    """How much of the second halves was written, each float64 `[n]` in [0, 1].

    The cue is in neither side, so that what is shared does not raise the floor.

    Args:
      texts: tokens of each.
      written: see `continuations`.
      tokenizer: to compare words; None: tokens alone.
    Returns:
      "exact": 1 where all tokens are right; "tokens": share that is right at its place; with a
      tokenizer also "rougeL": F1 of the words.
    """
    if len(texts) != len(written) or not texts:
        raise UserError(f"recall: {len(texts)} texts but {len(written)} continuations")
    rest = [np.asarray(text)[cue_length(len(text)) :] for text in texts]
    right = []
    for truth, ours in zip(rest, written, strict=True):
        padded = np.full(len(truth), -1)
        padded[: min(len(ours), len(truth))] = np.asarray(ours)[: len(truth)]
        right.append(padded == truth)
    found = {
        "exact": np.asarray([each.all() for each in right], np.float64),
        "tokens": np.asarray([each.mean() for each in right], np.float64),
    }
    if tokenizer is not None:
        truths, answers = (
            tokenizer.batch_decode([list(map(int, ids)) for ids in some], skip_special_tokens=True)
            for some in (rest, written)
        )
        found["rougeL"] = rouge(truths, answers)["rougeL_f1"]
    return found


def share_left(scores: np.ndarray, floor: float, start: float) -> np.ndarray:
    """Share of what study has gained that is left, so that measures with other floors compare.

    Args:
      scores: mean score some updates later, of any shape.
      floor: before study.
      start: just after study.
    Returns:
      (score - floor) / (start - floor); nan where study gained nothing.
    """
    scores = np.asarray(scores, np.float64)
    if start <= floor:
        return np.full(scores.shape, np.nan)
    return (scores - floor) / (start - floor)


def first_below(times: np.ndarray, shares: np.ndarray, level: float = 0.5) -> float:
    """First time at which the share left is below `level`; inf where it never is."""
    below = np.flatnonzero(np.asarray(shares, float) < level)
    return float(np.asarray(times)[below[0]]) if len(below) else float("inf")
