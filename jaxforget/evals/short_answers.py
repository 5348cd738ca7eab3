"""Short answers against every right wording: exact match and overlap of words, as in SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxforget.engine.errors import UserError


def normalised(text: str) -> str:
    """A text in small letters without punctuation, English articles and double spaces."""
    bare = "".join(each for each in text.lower() if each not in string.punctuation)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", bare).split())


def exact_matches(truths: Sequence[Sequence[str]], answers: Sequence[str]) -> np.ndarray:
    """Which answers are one of the right ones, but for what `normalised` takes away.

    Args:
      truths: right wordings of each answer `[n]`, at least one each.
      answers: generated ones `[n]`.
    Returns:
      float64 `[n]`, 0 or 1.
    Raises:
      UserError: no answer, different numbers of them, or one without a right wording.
    Source: Rajpurkar et al. 2016, SQuAD (arXiv 1606.05250), section 6.1.
    """
    _refuse_apart(truths, answers)
    pairs = zip(truths, answers, strict=True)
    found = [normalised(answer) in set(map(normalised, right)) for right, answer in pairs]
    return np.asarray(found, np.float64)


def token_f1(truths: Sequence[Sequence[str]], answers: Sequence[str]) -> np.ndarray:
    """F1 of each answer's words against those of the right wording it is nearest to.

    Args:
      truths, answers: as for `exact_matches`.
    Returns:
      float64 `[n]` in [0, 1]; an answer without words has 1 where a right wording has none either.
    Raises:
      UserError: as `exact_matches`.
    Source: as `exact_matches`.
    """
    _refuse_apart(truths, answers)
    pairs = zip(truths, answers, strict=True)
    return np.asarray([max(_f1(each, answer) for each in right) for right, answer in pairs])


def _f1(truth: str, answer: str) -> float:
    want, have = normalised(truth).split(), normalised(answer).split()
    if not want or not have:
        return float(want == have)
    common = sum((Counter(want) & Counter(have)).values())
    return 2 * common / (len(want) + len(have))


def _refuse_apart(truths: Sequence[Sequence[str]], answers: Sequence[str]) -> None:
    if len(truths) != len(answers):
        raise UserError(f"short answers: {len(truths)} truths but {len(answers)} answers")
    if not answers:
        raise UserError("short answers: there is nothing to average (empty set)")
    if any(isinstance(right, str) or not right for right in truths):
        raise UserError("short answers: give a list of right wordings for each answer")
