"""Configurations: what every command can be told, and how YAML becomes it.

Those of streams and of injected facts are in `jaxforget.config.stream` and `.acquire`.
"""

from jaxforget.config.reading import (
    as_tree,
    build,
    defaults,
    identity,
    load,
    overridden,
    resolve,
    to_yaml,
)
from jaxforget.config.schemas import (
    AuditConfig,
    EvaluateConfig,
    FinetuneConfig,
    LoraConfig,
    SweepConfig,
    TrainConfig,
    UnlearnConfig,
)
from jaxforget.config.suites import SUITES, Suite, SuiteConfig, suite_sources

__all__ = [
    "SUITES",
    "AuditConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "LoraConfig",
    "Suite",
    "SuiteConfig",
    "SweepConfig",
    "TrainConfig",
    "UnlearnConfig",
    "as_tree",
    "build",
    "defaults",
    "identity",
    "load",
    "overridden",
    "resolve",
    "suite_sources",
    "to_yaml",
]
