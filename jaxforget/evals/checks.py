"""What every metric asks of its input: something is there, and all of it is finite."""

import numpy as np

from jaxforget.engine.errors import UserError


def checked(name: str, values: np.ndarray) -> np.ndarray:
    """`values` as float64.

    Args:
      name: of the metric, for messages.
      values: numbers of any shape.
    Raises:
      UserError: no value, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise UserError(f"{name}: there is nothing to average (empty set)")
    if not np.isfinite(values).all():
        where = int(np.argmin(np.isfinite(values)))
        raise UserError(f"{name}: value {where} is {values.flat[where]}; the model is broken")
    return values


def paired(name: str, *columns: np.ndarray) -> list[np.ndarray]:
    """`checked` columns that hold one entry for each of the same examples or targets.

    Raises:
      UserError: as `checked`; columns of different lengths.
    """
    values = [checked(name, column) for column in columns]
    sizes = [len(column) for column in values]
    if len(set(sizes)) > 1:
        raise UserError(f"{name}: its inputs differ in length: {', '.join(map(str, sizes))}")
    return values


def bodies(
    name: str, values: np.ndarray, offsets: np.ndarray, ended: np.ndarray | bool
) -> list[np.ndarray]:
    """Each example's values, without the last where that one belongs to the end of the text.

    Args:
      name: of the metric, for messages.
      values: `[M]` or `[M, k]`, one entry a target.
      offsets: int `[n + 1]`; example i owns the slice `offsets[i]:offsets[i + 1]`.
      ended: bool `[n]`, or one for all: is an example's last target the end-of-text token?
    Raises:
      UserError: as `checked`; no example, or offsets that do not fit the values.
    """
    values, count = checked(name, values), len(offsets) - 1
    if count < 1 or offsets[0] != 0 or offsets[-1] != len(values) or np.diff(offsets).min() < 0:
        raise UserError(f"{name}: offsets must rise from 0 to the {len(values)} values given")
    left_out = np.broadcast_to(np.asarray(ended, bool), (count,))
    spans = zip(offsets[:-1], offsets[1:], left_out, strict=True)
    return [values[a : max(a, b - int(last))] for a, b, last in spans]
