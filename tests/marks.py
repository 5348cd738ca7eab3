"""Which of many cases are run by default."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(soon: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases as parameters; those that are not `soon` are slow tests. Tuples are several values."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in soon else pytest.mark.slow,
        )
        for case in cases
    ]
