"""The part of the catalogue that edits whole models: at once, or after a training."""

from collections.abc import Mapping

from jaxforget import objectives as o
from jaxforget.edits.whole import ssd_edit, task_arithmetic_edit
from jaxforget.methods import parameters as p
from jaxforget.methods.recipe import Built, Recipe

BOTH = ("forget", "retain")
DIRECT = "it changes the weights themselves"


def _ssd(q: p.Ssd) -> Built:
    return Built(None, edit=ssd_edit(q.alpha, q.lam, q.estimator), whole=BOTH)


def _task_arithmetic(q: p.TaskArithmetic) -> Built:
    edit = task_arithmetic_edit(q.scale)
    return Built(o.forget_nll_objective(), {"forget": 1.0}, edit=edit)


EDITS: Mapping[str, Recipe] = {
    "ssd": Recipe(
        title="Selective synaptic dampening",
        paper="Foster et al. 2024 (arXiv 2308.07707)",
        formula="w min(lam I / I_forget, 1) where I_forget > alpha I; I = mean squared gradient",
        parameters=p.Ssd,
        build=_ssd,
        cost="no steps; 1F + 1B over all data, and once more over forget",
        weights_only=DIRECT,
    ),
    "task_arithmetic": Recipe(
        title="Task-vector negation",
        paper="Ilharco et al. 2023 (arXiv 2212.04089)",
        formula="w - scale (w tuned on forget - w)",
        parameters=p.TaskArithmetic,
        build=_task_arithmetic,
    ),
}
