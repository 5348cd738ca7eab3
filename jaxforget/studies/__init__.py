"""What a user runs from end to end: each study takes a configuration and returns a `Result`."""

from jaxforget.studies.audit import audit
from jaxforget.studies.common import Events, Result
from jaxforget.studies.continual import continual
from jaxforget.studies.evaluate import evaluate
from jaxforget.studies.quickstart import quickstart
from jaxforget.studies.sweep import sweep
from jaxforget.studies.unlearn import finetune, unlearn

__all__ = [
    "Events",
    "Result",
    "audit",
    "continual",
    "evaluate",
    "finetune",
    "quickstart",
    "sweep",
    "unlearn",
]
