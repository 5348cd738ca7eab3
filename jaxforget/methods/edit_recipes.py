"""The part of the catalogue that edits whole models: at once, or after a training."""

from collections.abc import Mapping

from jaxforget import objectives as o
from jaxforget.edits.material import NewToken
from jaxforget.edits.sparsity import l1_decay
from jaxforget.edits.steering import Search
from jaxforget.edits.unierase import Lessons, Rewriting, unierase_edit
from jaxforget.edits.whole import (
    amnesiac_edit,
    fisher_edit,
    influence_edit,
    ssd_edit,
    task_arithmetic_edit,
    woodfisher_edit,
)
from jaxforget.methods import edit_parameters as p
from jaxforget.methods.recipe import Built, Recipe

BOTH = ("forget", "retain")
DIRECT = "it changes the weights themselves"


def _ssd(q: p.Ssd) -> Built:
    return Built(None, edit=ssd_edit(q.alpha, q.lam, q.estimator), whole=BOTH)


def _task_arithmetic(q: p.TaskArithmetic) -> Built:
    edit = task_arithmetic_edit(q.scale)
    return Built(o.forget_nll_objective(), {"forget": 1.0}, edit=edit)


def _fisher(q: p.FisherForgetting) -> Built:
    edit = fisher_edit(q.alpha, q.limit, q.form, q.estimator)
    return Built(None, edit=edit, whole=("retain",))


def _l1_sparse(q: p.L1Sparse) -> Built:
    return Built(
        o.retain_objective(),
        {"retain": q.retain_weight},
        transform=lambda steps: l1_decay(q.scale, steps=steps),
    )


def _unierase(q: p.UniErase) -> Built:
    kept = ("retain", "general") if q.preserve == "both" else (q.preserve,)
    lessons = Lessons(
        (q.plain_epochs, q.plain_rate),
        (q.forms_epochs, q.forms_rate),
        (q.robust_epochs, q.robust_rate),
        q.noise,
    )
    rewriting = Rewriting(q.layers, q.lam, q.threshold, kept)
    search = Search(q.search_steps, q.search_rate, q.kl_weight, q.decay, q.limit, q.stop)
    return Built(
        None,
        edit=unierase_edit(lessons, rewriting, search),
        whole=("forget", *(kept if q.threshold is not None else ())),
        token=NewToken(q.token, q.neutral),
    )


EDITS: Mapping[str, Recipe] = {
    "amnesiac": Recipe(
        title="Amnesiac unlearning",
        paper="Graves et al. 2021 (arXiv 2010.10981)",
        formula="w - the recorded updates of the steps that saw forget",
        parameters=p.Amnesiac,
        build=lambda q: Built(None, edit=amnesiac_edit(q.updates, q.share), whole=("forget",)),
        cost="no steps; reads what `finetune` recorded",
        weights_only=DIRECT,
    ),
    "fisher_forgetting": Recipe(
        title="Fisher forgetting",
        paper="Golatkar et al. 2020 (arXiv 1911.04933)",
        formula="w + noise of deviation min(sqrt(alpha / I_retain), limit)",
        parameters=p.FisherForgetting,
        build=_fisher,
        cost="no steps; 1F + 1B over retain, one example at a time",
        weights_only=DIRECT,
    ),
    "iau": Recipe(
        title="Influence approximation",
        paper="IAU (arXiv 2507.23257)",
        formula="one optimizer step along grad NLL(retain) - grad NLL(forget)",
        parameters=p.InfluenceApproximation,
        build=lambda q: Built(None, edit=influence_edit(q.learning_rate, q.optimizer), whole=BOTH),
        cost="no steps; 1F + 1B over all data",
        weights_only=DIRECT,
    ),
    "l1_sparse": Recipe(
        title="L1-sparse fine-tuning",
        paper="Jia et al. 2023 (arXiv 2304.04934)",
        formula="NLL(retain) + a (1 - step / steps) |w|_1",
        parameters=p.L1Sparse,
        build=_l1_sparse,
        weights_only="it makes the weights sparse, which low-rank factors beside them cannot",
    ),
    "ssd": Recipe(
        title="Selective synaptic dampening",
        paper="Foster et al. 2024 (arXiv 2308.07707)",
        formula="w min(lam I / I_forget, 1) where I_forget > alpha I; I = mean squared gradient",
        parameters=p.Ssd,
        build=_ssd,
        cost="no steps; 1F + 1B over all data",
        weights_only=DIRECT,
    ),
    "task_arithmetic": Recipe(
        title="Task-vector negation",
        paper="Ilharco et al. 2023 (arXiv 2212.04089)",
        formula="w - scale (w tuned on forget - w)",
        parameters=p.TaskArithmetic,
        build=_task_arithmetic,
    ),
    "unierase": Recipe(
        title="UniErase",
        paper="UniErase (arXiv 2505.15674)",
        formula="W + D, D = P D of least |K D - R|^2 + lam |D|^2: forget then begins with [UNL]",
        parameters=p.UniErase,
        build=_unierase,
        cost="no steps; 31F + 31B over forget for the token, 12F + 10B for the search",
        weights_only=DIRECT,
    ),
    "woodfisher": Recipe(
        title="Influence through the Fisher matrix",
        paper="Izzo et al. 2021 (arXiv 2002.10077), WoodFisher (arXiv 2004.14340)",
        formula="w + scale H^-1 (n_f / n) (grad NLL(forget) - grad NLL(retain))",
        parameters=p.WoodFisher,
        build=lambda q: Built(
            None, edit=woodfisher_edit(q.scale, q.damping, q.recursion), whole=BOTH
        ),
        cost="no steps; 2F + 2B over retain, one example at a time",
        weights_only=DIRECT,
    ),
}
