"""Language models as pure functions on plain dictionaries; knows nothing of data sets.

Public names are imported when first used, so that `import jaxforget.models` stays cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxforget.models.config import DecoderConfig
    from jaxforget.models.decoder import Compute
    from jaxforget.models.language_model import LanguageModel, from_scratch, load

__all__ = ["Compute", "DecoderConfig", "LanguageModel", "from_scratch", "load"]

_HOME = {
    "Compute": "decoder",
    "DecoderConfig": "config",
    "LanguageModel": "language_model",
    "from_scratch": "language_model",
    "load": "language_model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
