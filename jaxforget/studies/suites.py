"""The suites beside TOFU's by the type of their settings: how to read and how to judge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxforget.evals.suites import blur, choice, harness, lume, muse, own, rwku
from jaxforget.evals.suites.suite import SuiteResult


@dataclass(frozen=True)
class Reader:
    """How a suite's data are read and a model is judged by them.

    Attributes:
      read: settings -> data; raises UserError.
      evaluate: (judged, data, settings, the oracle's rows or None) -> result.
    """

    read: Callable[[Any], Any]
    evaluate: Callable[[Any, Any, Any, Any], SuiteResult]


READERS: Mapping[type, Reader] = {
    own.OwnSuite: Reader(own.read, own.evaluate),
    choice.ChoiceSuite: Reader(choice.read, choice.evaluate),
    rwku.RwkuSuite: Reader(rwku.read, rwku.evaluate),
    muse.MuseSuite: Reader(muse.read, muse.evaluate),
    blur.BlurSuite: Reader(blur.read, blur.evaluate),
    lume.LumeSuite: Reader(lume.read, lume.evaluate),
    harness.HarnessSuite: Reader(harness.read, harness.evaluate),
}
"""All of them; TOFU's own way is in `studies.evaluate`."""
