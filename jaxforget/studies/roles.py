"""The data sets a method reads, by role."""

from collections.abc import Sequence
from dataclasses import replace

from jaxforget.config import UnlearnConfig
from jaxforget.data.alternates import GENERATED, mismatched, random_choices, refusals
from jaxforget.data.records import Record, refuse_overlap
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.sources import DataSource, load_records
from jaxforget.data.triggers import poisoned
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import RunDirectory
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.common import tokens_of

FORGET, RETAIN, ALTERNATE, POISONED = "forget", "retain", "alternate", "poisoned"
MADE = (ALTERNATE, POISONED)  # by the engine, where no file is named


def refuse_missing(config: UnlearnConfig, method: Method) -> None:
    """Raise UserError where a method needs a data set that the configuration does not name."""
    needed = [*method.roles, *([RETAIN] if _donor(config, method) == "retain_answers" else [])]
    for role in needed:
        if role not in MADE and getattr(config, role) is None:
            raise UserError(f"{role}: method {method.name!r} needs this data set; name a file")


def read_roles(
    config: UnlearnConfig, method: Method, lm: LanguageModel, run: RunDirectory
) -> dict[str, TokenisedSet]:
    """Tokens of every role of a method, checked.

    Raises:
      UserError: unreadable data, a record both to forget and to retain, alternate answers that do
        not belong to the forget set.
    """
    records = {FORGET: load_records(config.forget)}
    if config.retain is not None:
        records[RETAIN] = load_records(config.retain)
        refuse_overlap(records[FORGET], records[RETAIN])
    for role in method.roles:
        if role == ALTERNATE:
            records[role] = _alternates(config, method, records)
        elif role == POISONED:
            assert method.poison is not None
            records[role] = poisoned(records[FORGET], method.poison, config.train.seed)
        elif role not in records:
            records[role] = load_records(getattr(config, role))
    sets = {role: tokens_of(records[role], lm, config, run) for role in method.roles}
    column = _entity_column(config, method)
    if column is not None:
        for role in (FORGET, RETAIN):
            about = tuple(_entity(record, column, role) for record in records[role])
            sets[role] = replace(sets[role], entities=about)
    return sets


def _entity_column(config: UnlearnConfig, method: Method) -> str | None:
    train = config.train
    if train.pairing != "modular":
        if train.entity_column is not None:
            raise UserError("train.entity_column: only the pairing 'modular' reads it")
        return None
    if train.entity_column is None:
        raise UserError("train.entity_column: the pairing 'modular' needs a column's name")
    missing = [role for role in (FORGET, RETAIN) if role not in method.needs.roles]
    if missing:
        raise UserError(
            f"train.pairing: 'modular' pairs the forget set with the retain set, but "
            f"{method.name} does not train on the {missing[0]} set"
        )
    return train.entity_column


def _entity(record: Record, column: str, role: str) -> str | None:
    value = record.extra.get(column)
    if value is not None and not isinstance(value, (str, int)):
        raise UserError(
            f"row {record.row} of {record.source}: {column!r} must be text or a number, is "
            f"{value!r:.60}"
        )
    name = None if value in (None, "", "general") else str(value)
    if name is None and role == FORGET:
        raise UserError(
            f"row {record.row} of {record.source}: {column!r} must say whom it is about"
        )
    return name


def _donor(config: UnlearnConfig, method: Method) -> str | None:
    """The kind of generated alternates, or None where they are read or not needed."""
    source = config.alternate or DataSource(method.alternate)
    return source.path if ALTERNATE in method.roles and source.path in GENERATED else None


def _alternates(
    config: UnlearnConfig, method: Method, records: dict[str, list[Record]]
) -> list[Record]:
    kind, seed, forget = _donor(config, method), config.train.seed, records[FORGET]
    if kind == "refusals":
        return refusals(forget, seed)
    if kind == "random_choices":
        return random_choices(forget, seed)
    if kind is not None:
        return mismatched(forget, records[RETAIN if kind == "retain_answers" else FORGET], seed)
    assert config.alternate is not None
    found = load_records(config.alternate)
    if ALTERNATE in method.needs.aligned:
        refuse_strangers(forget, found)
    return found


def refuse_strangers(forget: Sequence[Record], alternate: Sequence[Record]) -> None:
    """Raise UserError where partners, told by their place, do not ask the same."""
    if len(forget) != len(alternate):
        raise UserError(
            f"alternate: {alternate[0].source} has {len(alternate)} rows, the forget set "
            f"{len(forget)}; row i of one must answer row i of the other"
        )
    for one, other in zip(forget, alternate, strict=True):
        if one.prompt != other.prompt:
            raise UserError(
                f"alternate: row {other.row} of {other.source} asks {other.prompt!r:.60}, but row "
                f"{one.row} of {one.source} asks {one.prompt!r:.60}; they must be the same"
            )
