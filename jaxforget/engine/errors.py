"""The one exception a user is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: says what was wrong, where, and what is allowed.

    The command line prints its text alone (no traceback unless `--debug`) and exits with 2.
    """


def did_you_mean(wrong: str, allowed: Iterable[str]) -> str:
    """Sentence that names the closest allowed words, or all of them when none is close.

    Args:
      wrong: what the user wrote.
      allowed: the words that would have been right.
    Returns:
      For example "Did you mean 'npo'? Allowed: ga, graddiff, npo."
    """
    allowed = sorted(allowed)
    close = difflib.get_close_matches(wrong, allowed, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(allowed)}."
