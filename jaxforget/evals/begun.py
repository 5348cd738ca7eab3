"""What greedy answers begin with, known from the teacher-forced pass.

Where the likeliest token is the true one from an answer's first token on, a model that writes
greedily writes the true answer so far: those tokens need not be made one by one. Paraphrases and
wrong answers tell as much. Near ties apart, which rounding may decide otherwise, nothing changes
but the time.
"""

from collections.abc import Sequence

import numpy as np

from jaxforget.evals.answers import Scored


def known_beginnings(scored: Scored, name: str, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The first tokens of each greedy answer, as far as the pass tells.

    Args:
      scored: the pass, with statistics.
      name: of a set that was scored.
      prompts: int32 `[length]` for each record of the set, what its answer is written behind; an
        answer that was scored behind anything else tells nothing.
    Returns:
      int32 `[length]` each, length >= 0: of each record's answers the one that goes farthest.
    """
    found = [np.zeros(0, np.int32)] * len(prompts)
    answers = scored.answers[name]
    owners = [
        (np.arange(answers.correct.start, answers.correct.stop), np.arange(len(prompts))),
        (answers.paraphrased, answers.paraphrase_owner),
        (answers.perturbed, answers.perturbed_owner),
    ]
    for examples, records in owners:
        if examples is None or records is None:
            continue
        for example, record in zip(examples.tolist(), records.tolist(), strict=True):
            said = _said(scored, example, prompts[record])
            if len(said) > len(found[record]):
                found[record] = said
    return found


def _said(scored: Scored, example: int, prompt: np.ndarray) -> np.ndarray:
    """The targets of an example, behind a prompt, up to the first that is not the likeliest."""
    tokenised, hits = scored.tokenised, scored.table.hit
    assert hits is not None
    begin, end = tokenised.offsets[example : example + 2]
    first, last = tokenised.label_offsets[example : example + 2]
    start = end - (last - first)  # the place whose target is the answer's first token
    if not np.array_equal(tokenised.tokens[begin : start + 1], prompt):
        return np.zeros(0, np.int32)
    missed = np.append(hits[first:last] == 0, True)
    return tokenised.targets[start : start + int(missed.argmax())]
