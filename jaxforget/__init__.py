"""jaxforget: engines that make models forget on purpose and remember the rest.

Everything public is reachable from here; parts are imported when first used, so that
`import jaxforget` stays fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxforget import combiners, data, evals, methods, models, objectives, strategies
    from jaxforget.config import (
        AuditConfig,
        EvaluateConfig,
        FinetuneConfig,
        SweepConfig,
        UnlearnConfig,
    )
    from jaxforget.config.stream import ContinualConfig
    from jaxforget.models.language_model import LanguageModel, load
    from jaxforget.studies import Result, audit, continual, evaluate, finetune, sweep, unlearn

_MODULES = (
    "combiners",
    "data",
    "edits",
    "evals",
    "loops",
    "methods",
    "models",
    "objectives",
    "strategies",
)
_NAMES = {
    "LanguageModel": "jaxforget.models.language_model",
    "load": "jaxforget.models.language_model",
    "Result": "jaxforget.studies",
    "unlearn": "jaxforget.studies",
    "finetune": "jaxforget.studies",
    "audit": "jaxforget.studies",
    "continual": "jaxforget.studies",
    "ContinualConfig": "jaxforget.config.stream",
    "evaluate": "jaxforget.studies",
    "sweep": "jaxforget.studies",
    "UnlearnConfig": "jaxforget.config",
    "FinetuneConfig": "jaxforget.config",
    "EvaluateConfig": "jaxforget.config",
    "AuditConfig": "jaxforget.config",
    "SweepConfig": "jaxforget.config",
}

__all__ = [
    "AuditConfig",
    "ContinualConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "LanguageModel",
    "Result",
    "SweepConfig",
    "UnlearnConfig",
    "audit",
    "combiners",
    "continual",
    "data",
    "evals",
    "evaluate",
    "finetune",
    "load",
    "methods",
    "models",
    "objectives",
    "strategies",
    "sweep",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxforget.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'jaxforget' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
