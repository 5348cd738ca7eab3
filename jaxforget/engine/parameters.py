"""Parameters that a configuration gives by name, checked against a dataclass."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jaxforget.engine.errors import UserError, did_you_mean


def validated[T](
    key: str, owner: str, schema: type[T], given: Mapping[str, Any], also: Iterable[str] = ()
) -> T:
    """The parameters as an instance of their dataclass, by type and range.

    Args:
      key: of the mapping in the configuration, for messages.
      owner: whose parameters they are, for messages.
      schema: frozen dataclass whose defaults hold where nothing is given.
      given: by name.
      also: further words that messages name as allowed.
    Raises:
      UserError: an unknown name, or a value of a wrong type or out of range.
    """
    known = [each.name for each in fields(schema)]  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in known:
            hint = did_you_mean(name, [*known, *also])
            raise UserError(f"{key}.{name}: {owner} has no such key. {hint}")
    try:
        return TypeAdapter(schema).validate_python(dict(given))
    except ValidationError as error:
        faults = (
            f"{key}.{'.'.join(map(str, fault['loc']))}: {fault['msg']} (got {fault['input']!r})"
            for fault in error.errors()
        )
        raise UserError("\n".join(faults)) from None
