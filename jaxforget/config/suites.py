"""Settings of the evaluation suites, and which of them a mapping means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import Discriminator, Tag

from jaxforget.data.sources import DataSource, Source
from jaxforget.evals.suites.blur import BlurSuite
from jaxforget.evals.suites.choice import ChoiceSuite
from jaxforget.evals.suites.harness import HarnessSuite
from jaxforget.evals.suites.lume import LumeSuite
from jaxforget.evals.suites.muse import MuseSuite
from jaxforget.evals.suites.own import OwnSuite
from jaxforget.evals.suites.rwku import RwkuSuite


@dataclass(frozen=True)
class SuiteConfig:
    """The TOFU suite; `suite` may name another one, see `SUITES`.

    Attributes:
      suite: "tofu".
      forget, retain, real_authors, world_facts: evaluation sets; TOFU's *_perturbed files.
      holdout: examples of the forget set's kind that no model has seen; membership inference
        tells the forget set from them.
      oracle: results.json (or run directory) of a model that never saw the forget set.
      generate: also generate answers; score them with ROUGE, count refusals and gibberish.
      gradient_norms: also that membership attack; a backward pass for every example of forget
        and holdout.
      max_new_tokens: longest generated answer.
      batch_size: prompts generated at a time, and packed rows scored at a time.
      limit: rows used of each set; None: all.
      utility_over: "all" needs every one of the nine parts; "available" averages those there are
        and names the missing ones.
      peer_compat: reproduce the peer's known faults where published numbers depend on them.
    """

    suite: Literal["tofu"] = "tofu"
    forget: Source | None = None
    retain: Source | None = None
    real_authors: Source | None = None
    world_facts: Source | None = None
    holdout: Source | None = None
    oracle: str | None = None
    generate: bool = True
    gradient_norms: bool = False
    max_new_tokens: Annotated[int, Ge(1)] = 200
    batch_size: Annotated[int, Ge(1)] = 32
    limit: Annotated[int, Ge(1)] | None = None
    utility_over: Literal["all", "available"] = "all"
    peer_compat: bool = False


SUITES: Mapping[str, type] = {
    "tofu": SuiteConfig,
    "own": OwnSuite,
    "choice": ChoiceSuite,
    "rwku": RwkuSuite,
    "muse": MuseSuite,
    "blur": BlurSuite,
    "lume": LumeSuite,
    "harness": HarnessSuite,
}
"""Settings of every suite by the name that `suite` gives it."""


def _suite_named(value: Any) -> Any:
    """Which suite a mapping or its settings are; TOFU's where nothing is said."""
    if isinstance(value, Mapping):
        return value.get("suite", "tofu")
    return getattr(value, "suite", "tofu")


type Suite = Annotated[
    Annotated[SuiteConfig, Tag("tofu")]
    | Annotated[OwnSuite, Tag("own")]
    | Annotated[ChoiceSuite, Tag("choice")]
    | Annotated[RwkuSuite, Tag("rwku")]
    | Annotated[MuseSuite, Tag("muse")]
    | Annotated[BlurSuite, Tag("blur")]
    | Annotated[LumeSuite, Tag("lume")]
    | Annotated[HarnessSuite, Tag("harness")],
    Discriminator(_suite_named),
]


def suite_sources(suite: SuiteConfig) -> dict[str, DataSource]:
    """The suite's sets by name, those that are given."""
    names = ("forget", "retain", "real_authors", "world_facts", "holdout")
    return {name: getattr(suite, name) for name in names if getattr(suite, name) is not None}
