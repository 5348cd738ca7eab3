"""Linear probes: do hidden states still tell the true answer from a wrong one?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt

from jaxforget.data.records import Record, variants
from jaxforget.evals.attacks.attack import AuditData, Finding
from jaxforget.evals.attacks.known import known, tokens_of
from jaxforget.evals.attacks.layers import by_example, one_label
from jaxforget.models.lens import layer_states

WRONG = "perturbed_answer"


@dataclass(frozen=True)
class Probe:
    """Settings of the probes.

    Attributes:
      folds: of the cross-validation, by record; at most as many as there are records.
      penalty: weight of the squared norm in the logistic regression.
    """

    folds: Annotated[int, Ge(2)] = 5
    penalty: Annotated[float, Gt(0)] = 1.0


def probe(lm: Any, data: AuditData, settings: Probe) -> Finding:
    """Accuracy of a logistic regression on every layer's states of true and wrong answers.

    Every record gives two examples, its own answer and one wrong one: a perturbed answer where
    the records have some, else another record's, drawn by the seed; so guessing is right half the
    time. A record is never in both the training and the test part. The layer is chosen by the
    accuracy that is reported, which flatters every model alike.

    Args:
      lm: `LanguageModel`.
      data: see `AuditData`.
      settings: see `Probe`.
    Returns:
      `known` is 2 accuracy - 1 of the best layer, not below 0; curve `accuracy` over layers, from
      0; scores `accuracy`, `layer`, and `head`: how often the model's own likelihood per token
      prefers the true answer.
    Source: Unforgettable Generalization (arXiv 2409.02228): last token, residual stream, every
      layer; the regression on standardised states and what is told apart are chosen here.
    """
    count, pairs = len(data.forget), [*data.forget, *wrong_answers(data)]
    # the state behind the last token of the answer: the end of the text is its target
    ended = replace(data, template=replace(data.template, end=True))
    tokenised = tokens_of(lm, pairs, ended)
    states = by_example(layer_states, lm, lm.params, one_label(tokenised, -1), data)
    right = np.stack(
        [_right(states[:, layer], settings) for layer in range(states.shape[1])]
    )  # [layers, 2 n]
    accuracy = right.mean(axis=1)
    best = int(accuracy.argmax())
    nll = known(lm, lm.params, tokenised, data).nll
    return Finding(
        known=max(0.0, float(2 * accuracy[best] - 1)),
        each=2 * right[best].reshape(2, count).mean(axis=0) - 1,
        scores={
            "accuracy": float(accuracy[best]),
            "layer": float(best),
            "head": float((nll[:count] < nll[count:]).mean()),
        },
        curves={"accuracy": [(float(layer), float(a)) for layer, a in enumerate(accuracy)]},
    )


def wrong_answers(data: AuditData) -> list[Record]:
    """A wrong answer to every forget record's question."""
    rng, records = np.random.default_rng(data.seed), data.forget
    if all(WRONG in record.extra for record in records):
        expanded, owner = variants(records, WRONG)
        starts = np.searchsorted(owner, np.arange(len(records) + 1))
        return [expanded[rng.integers(a, b)] for a, b in zip(starts, starts[1:], strict=False)]
    return [replace(each, answer=_other(records, each, rng)) for each in records]


def _other(records: Sequence[Record], record: Record, rng: np.random.Generator) -> str:
    different = [each.answer for each in records if each.answer != record.answer]
    return different[rng.integers(len(different))]


def _right(states: np.ndarray, settings: Probe) -> np.ndarray:
    """Whether each example is told rightly by a probe that has not seen its record.

    Args:
      states: `[2 n, D]`, first of the true answers, then of the wrong ones.
    Returns:
      float64 `[2 n]`, 0 or 1.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = len(states) // 2
    truth = np.repeat([1, 0], count)
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / settings.penalty, max_iter=1000)
    )
    folds = GroupKFold(min(settings.folds, count))
    groups = np.tile(np.arange(count), 2)
    told = cross_val_predict(model, states.astype(np.float64), truth, groups=groups, cv=folds)
    return np.asarray(told == truth, np.float64)


def budget(settings: Probe) -> str:
    """What it costs the attacker."""
    return (
        "true and wrong answers to other questions of the forget set, and a logistic regression "
        f"for every layer ({settings.folds} folds)"
    )


def lacks(data: AuditData, settings: Probe) -> list[str]:
    """What the attack needs and the data do not have."""
    found = [] if len(data.forget) > 1 else ["two forget records"]
    wrong = all(WRONG in record.extra for record in data.forget)
    if not wrong and len({record.answer for record in data.forget}) < 2:
        found.append(f"different answers, or a column {WRONG}")
    return found
