"""Maximum likelihood: the objective of fine-tuning."""

from jaxforget.engine.tree import Params
from jaxforget.engine.types import Batches, Metrics, Reference, ScoreFn, Terms
from jaxforget.objectives.shares import labelled_count
from jaxforget.objectives.spec import Needs, ObjectiveSpec
from jaxforget.objectives.token import mean_logp

NLL = "nll"


def nll_objective(role: str = "train") -> ObjectiveSpec:
    """Mean negative log-likelihood of one role's targets, as the term `nll`.

    Args:
      role: the data set to learn.

    Metrics: `<role>_tokens`, labelled targets.
    """

    def objective(
        score: ScoreFn, params: Params, batches: Batches, reference: Reference
    ) -> tuple[Terms, Metrics]:
        scores = score(params, batches[role])
        return {NLL: -mean_logp(scores)}, {f"{role}_tokens": labelled_count(scores)}

    return ObjectiveSpec(objective, Needs((role,)), (NLL,))
