"""The data sets a method reads, by role."""

from jaxforget.config import UnlearnConfig
from jaxforget.data.alternates import GENERATED, mismatched, refusals
from jaxforget.data.records import Record, refuse_overlap
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.sources import DataSource, load_records
from jaxforget.engine.errors import UserError
from jaxforget.engine.run_dir import RunDirectory
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.common import tokens_of

FORGET, RETAIN, ALTERNATE = "forget", "retain", "alternate"


def refuse_missing(config: UnlearnConfig, method: Method) -> None:
    """Raise UserError where a method needs a data set that the configuration does not name."""
    needed = [*method.roles, *([RETAIN] if _donor(config, method) == "retain_answers" else [])]
    for role in needed:
        if role != ALTERNATE and getattr(config, role) is None:
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
        elif role not in records:
            records[role] = load_records(getattr(config, role))
    return {role: tokens_of(records[role], lm, config, run) for role in method.roles}


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
    if kind is not None:
        return mismatched(forget, records[RETAIN if kind == "retain_answers" else FORGET], seed)
    assert config.alternate is not None
    found = load_records(config.alternate)
    if ALTERNATE in method.needs.aligned:
        _refuse_strangers(forget, found)
    return found


def _refuse_strangers(forget: list[Record], alternate: list[Record]) -> None:
    """Partners are told by their place and must ask the same."""
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
