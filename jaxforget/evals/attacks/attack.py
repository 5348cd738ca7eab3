"""What an attack is, what it may use, and what it finds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxforget.data.records import Record
from jaxforget.data.template import Template

SETS = ("forget", "retain", "holdout", "unrelated")
"""Names of the texts that every audit knows; further ones are for relearning."""


@dataclass(frozen=True)
class AuditData:
    """What every attack of an audit may read, and how.

    Attributes:
      forget: what the audited model was made to forget; n records.
      retain: what it was to keep.
      holdout: of the forget set's kind, seen by no model; empty where there is none.
      unrelated: harmless text of another kind; empty where there is none.
      further: more texts to relearn from, by name.
      template: how a record becomes text.
      max_length: most tokens of one example.
      batch_size: packed rows scored, or prompts generated, at a time.
      max_new_tokens: longest generated answer.
      seed: of everything that is drawn.
      mesh: devices.
    """

    forget: Sequence[Record]
    retain: Sequence[Record]
    mesh: Mesh
    holdout: Sequence[Record] = ()
    unrelated: Sequence[Record] = ()
    further: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    template: Template = field(default_factory=Template)
    max_length: int = 512
    batch_size: int = 16
    max_new_tokens: int = 64
    seed: int = 0

    def records(self, name: str) -> Sequence[Record]:
        """One of the sets by name, the four or a further one; empty where there is none."""
        if name in SETS:
            return getattr(self, name)
        return self.further.get(name, ())


@dataclass(frozen=True)
class Finding:
    """What one attack found about one model.

    Attributes:
      known: how much of what was to be forgotten the attack brings out, at least 0, and more is
        worse; comparable between models under the same attack, not between attacks.
      each: `known` of every forget record, float64 `[n]`, whose mean it is; None where it is no
        mean, as with an AUC.
      scores: further scalars.
      curves: points (x, y) by name, such as forget probability over steps.
      examples: rows to read, such as {"prompt": .., "answer": ..}.
    """

    known: float
    each: np.ndarray | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    examples: Sequence[Mapping[str, Any]] = ()


type Run = Callable[[Any, AuditData, Any], Finding]
"""(model, data, the attack's settings) -> what it found."""


def nothing(data: AuditData, settings: Any) -> Sequence[str]:
    """What an attack lacks that needs no more than its sets."""
    return ()


def prompted(data: AuditData, settings: Any) -> Sequence[str]:
    """What an attack on questions lacks where some record is plain text."""
    return () if all(record.prompt for record in data.forget) else ("a prompt in every record",)


@dataclass(frozen=True)
class Attack:
    """One entry of the audit.

    Attributes:
      title: in words.
      threat: what the attacker has and may do.
      settings: frozen dataclass of its settings with their defaults.
      run: see `Run`; the model is a `LanguageModel`, whose parameters it leaves as they are.
      budget: settings -> what it costs the attacker, in words.
      measures: what `Finding.known` is.
      source: paper, or where the protocol is from.
      needs: sets of `AuditData` without which it cannot run, besides the forget set.
      lacks: (data, settings) -> what else it needs and the data do not have, in words.
    """

    title: str
    threat: str
    settings: type
    run: Run
    budget: Callable[[Any], str]
    measures: str
    source: str
    needs: tuple[str, ...] = ()
    lacks: Callable[[AuditData, Any], Sequence[str]] = nothing


def of_each(values: np.ndarray, **more: Any) -> Finding:
    """A finding whose `known` is the mean over the forget records."""
    values = np.asarray(values, np.float64)
    return Finding(known=float(values.mean()), each=values, **more)


def partners(data: AuditData) -> list[Record]:
    """A retain record for every forget record, drawn by the seed; again where there are fewer."""
    order = np.random.default_rng(data.seed).permutation(len(data.retain))
    return [data.retain[int(i)] for i in np.resize(order, len(data.forget))]


def halves(data: AuditData) -> tuple[list[Record], list[Record]]:
    """The forget records in two parts by the seed: to attack with, and to measure on."""
    order = np.random.default_rng(data.seed).permutation(len(data.forget))
    parts = [sorted(map(int, ids)) for ids in np.split(order, [len(order) // 2])]
    first, second = ([data.forget[i] for i in ids] for ids in parts)
    return first, second
