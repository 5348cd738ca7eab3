"""How much of an answer a model can still produce: of tokens it was scored on, and of texts."""

from collections.abc import Sequence

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.evals.checks import bodies
from jaxforget.evals.rouge import rouge

STOP_WORDS = ("\n\n", "\nQuestion", "Question:")
"""Where MUSE cuts an answer given after examples in the prompt: what follows is no answer."""


def exact_memorization(
    hits: np.ndarray, offsets: np.ndarray, *, ended: np.ndarray | bool = True
) -> np.ndarray:
    """Share of an answer's tokens that are the model's first choice, in [0, 1].

    Args:
      hits: `[M]`, 1 where the arg-max is the target.
      offsets: int `[n + 1]`.
      ended: bool `[n]`, or one for all: is an example's last target the end of the text, which
        is left out? The peer always leaves the last out, which loses a token of texts cut short.
    Returns:
      float64 `[n]`; an example of which nothing is left scores 0.
    """
    parts = bodies("memorisation", hits, offsets, ended)
    return np.asarray([part.mean() if len(part) else 0.0 for part in parts])


def extraction_strength(
    hits: np.ndarray,
    offsets: np.ndarray,
    *,
    ended: np.ndarray | bool = True,
    peer_compat: bool = False,
) -> np.ndarray:
    """1 - k/n with k the shortest prefix after which greedy decoding gives the rest, in [0, 1].

    Where even the last token is wrong, k = n and the score is 0; the peer's loop ends at
    k = n - 1, so its floor is 1/n.

    Args:
      hits, offsets, ended: as for `exact_memorization`.
      peer_compat: the peer's floor.
    Source: Carlini et al. 2021 (arXiv 2012.07805), as used by open-unlearning.
    """
    scores = []
    for body in bodies("memorisation", hits, offsets, ended):
        misses = np.nonzero(body < 0.5)[0]
        suffix = len(body) - (misses[-1] + 1) if len(misses) else len(body)
        if peer_compat and len(body):
            suffix = max(suffix, 1)
        scores.append(suffix / len(body) if len(body) else 0.0)
    return np.asarray(scores)


def verbatim_memorization(
    truths: Sequence[str], continuations: Sequence[str], *, peer_compat: bool = False
) -> np.ndarray:
    """MUSE's VerbMem of each text: ROUGE-L F1 of how the model continues it, in [0, 1].

    Args:
      truths: how each text goes on `[n]`.
      continuations: how the model goes on, as many tokens of it as of the truth `[n]`.
      peer_compat: words are stemmed first, as in the peer; MUSE does not.
    Source: Shi et al. 2024, MUSE (arXiv 2407.06460), section 2 and its code.
    """
    return rouge(truths, continuations, stem=peer_compat)["rougeL_f1"]


def knowledge_memorization(
    truths: Sequence[str],
    answers: Sequence[str],
    *,
    stop: Sequence[str] = STOP_WORDS,
    peer_compat: bool = False,
) -> np.ndarray:
    """MUSE's KnowMem of each question: ROUGE-L F1 of the answer, cut where the next one begins.

    Args:
      truths: right answers `[n]`.
      answers: what the model wrote after examples in the prompt `[n]`.
      stop: an answer ends before the first of these.
      peer_compat: words are stemmed first, as in the peer; MUSE does not.
    Source: as `verbatim_memorization`.
    """
    cut = [_before(answer, stop) for answer in answers]
    return rouge(truths, cut, stem=peer_compat)["rougeL_f1"]


def _before(text: str, stop: Sequence[str]) -> str:
    for word in stop:
        if not word:
            raise UserError("knowledge memorisation: an empty stop word would cut everything")
        text = text.split(word)[0]
    return text
