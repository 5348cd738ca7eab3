"""ROUGE between generated and true answers, by Google's `rouge-score`."""

from collections.abc import Sequence

import numpy as np

from jaxforget.engine.errors import UserError


def rouge(
    truths: Sequence[str], answers: Sequence[str], *, stem: bool = True
) -> dict[str, np.ndarray]:
    """ROUGE-1 and ROUGE-L of each answer.

    Args:
      truths: reference texts `[n]`.
      answers: generated texts `[n]`.
      stem: reduce words by the Porter stemmer first, as TOFU does and MUSE does not.
    Returns:
      "rouge1_recall", "rougeL_recall", "rougeL_f1": float64 `[n]` in [0, 1].
    Raises:
      UserError: no text, or different numbers of texts.
    """
    from rouge_score.rouge_scorer import RougeScorer

    if len(truths) != len(answers):
        raise UserError(f"rouge: {len(truths)} true answers but {len(answers)} generated")
    if not truths:
        raise UserError("rouge: there is nothing to average (empty set)")
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=stem)
    scores = [scorer.score(truth, answer) for truth, answer in zip(truths, answers, strict=True)]
    return {
        "rouge1_recall": np.asarray([each["rouge1"].recall for each in scores], np.float64),
        "rougeL_recall": np.asarray([each["rougeL"].recall for each in scores], np.float64),
        "rougeL_f1": np.asarray([each["rougeL"].fmeasure for each in scores], np.float64),
    }
