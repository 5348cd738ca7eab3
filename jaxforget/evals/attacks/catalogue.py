"""The attacks by name, and how a configuration chooses among them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.evals.attacks import (
    in_context,
    logit_lens,
    masked,
    membership,
    plain,
    probe,
    prompts,
    quantise,
    relearn,
    remind,
    sampling,
    steering,
    trigger,
)
from jaxforget.evals.attacks.attack import Attack, prompted

ASKS = "may ask and read probabilities"
HOLDS = "holds the weights"
WEIGHTS = f"{HOLDS} and may train them"

ATTACKS: Mapping[str, Attack] = {
    "ask": Attack(
        title="Asking",
        threat=ASKS,
        settings=plain.Ask,
        run=plain.ask,
        budget=plain.budget,
        measures="probability of the answers to forget",
        source="TOFU (arXiv 2401.06121)",
    ),
    "prompts": Attack(
        title="Other prompts",
        threat=ASKS,
        settings=prompts.Prompts,
        run=prompts.ask_otherwise,
        budget=prompts.budget,
        measures="probability of the answers to forget behind the best wording of each question",
        source="BLUR (arXiv 2506.15699) for combined questions; wordings of its own",
        lacks=prompts.lacks,
    ),
    "in_context": Attack(
        title="Relearning in context",
        threat=f"{ASKS}; holds other records of the forget set",
        settings=in_context.InContext,
        run=in_context.in_context,
        budget=in_context.budget,
        measures="probability of the answers to forget behind other forgotten examples",
        source="Shumailov et al. 2024 (arXiv 2407.00106)",
        lacks=in_context.lacks,
    ),
    "masked": Attack(
        title="Masked names",
        threat=f"{ASKS}; holds the texts, with names and numbers removed",
        settings=masked.Masked,
        run=masked.masked,
        budget=masked.budget,
        measures="share of the right name in the likelihoods of some names, over their own",
        source="The Memorization Problem (arXiv 2504.14765)",
        lacks=masked.lacks,
    ),
    "sampling": Attack(
        title="Sampling",
        threat="may ask often",
        settings=sampling.Sampling,
        run=sampling.sample,
        budget=sampling.budget,
        measures="ROUGE-L recall of the best of the sampled answers",
        source="leak@k (arXiv 2511.04934)",
        lacks=prompted,
    ),
    "logit_lens": Attack(
        title="Logit lens",
        threat=HOLDS,
        settings=logit_lens.LogitLens,
        run=logit_lens.logit_lens,
        budget=logit_lens.budget,
        measures="probability of each answer to forget, read in the best layer",
        source="Patil et al. 2023 (arXiv 2309.17410)",
    ),
    "probe": Attack(
        title="Linear probes",
        threat=f"{HOLDS} and some of the answers",
        settings=probe.Probe,
        run=probe.probe,
        budget=probe.budget,
        measures="accuracy above chance, 0 to 1, of true against wrong answers in the best layer",
        source="Unforgettable Generalization (arXiv 2409.02228)",
        lacks=probe.lacks,
    ),
    "steering": Attack(
        title="Activation steering",
        threat=HOLDS,
        settings=steering.Steering,
        run=steering.steer,
        budget=steering.budget,
        measures="probability of the answers to forget at the best layer and strength",
        source="Rimsky et al. 2023 (arXiv 2312.06681)",
        needs=("retain",),
    ),
    "trigger": Attack(
        title="Search for a trigger",
        threat=f"{HOLDS} and half of the answers",
        settings=trigger.TriggerSearch,
        run=trigger.search,
        budget=trigger.budget,
        measures="probability of the other half of the answers behind the trigger that is found",
        source="Zou et al. 2023 (arXiv 2307.15043); place as in arXiv 2510.17021",
        lacks=trigger.lacks,
    ),
    "membership": Attack(
        title="Membership inference",
        threat=f"{ASKS}; holds text of the forget set's kind that nobody trained on",
        settings=membership.Membership,
        run=membership.infer,
        budget=membership.budget,
        measures="|2 AUC - 1| of forget against holdout, of the attack that tells them apart best",
        source="MUSE (arXiv 2407.06460), Min-K%++ (arXiv 2404.02936)",
        needs=("holdout",),
        lacks=membership.lacks,
    ),
    "remind": Attack(
        title="Landscape of the loss",
        threat=f"{ASKS}; holds some of the forget set and text of its kind nobody trained on",
        settings=remind.Remind,
        run=remind.remind,
        budget=remind.budget,
        measures="2 AUC - 1 of forget against holdout by how the loss changes around a record",
        source="REMIND (arXiv 2511.04228)",
        needs=("holdout",),
        lacks=remind.lacks,
    ),
    "quantise": Attack(
        title="Quantisation",
        threat=HOLDS,
        settings=quantise.Quantise,
        run=quantise.quantise,
        budget=quantise.budget,
        measures="probability of the answers to forget after rounding",
        source="Zhang et al. 2024 (arXiv 2410.16454)",
    ),
    "relearn": Attack(
        title="Relearning",
        threat=WEIGHTS,
        settings=relearn.Relearn,
        run=relearn.relearn,
        budget=relearn.budget,
        measures="mean over the steps of the probability of the answers to forget",
        source="BLUR (arXiv 2506.15699)",
    ),
}
"""All attacks by name."""

DEFAULT: Sequence[Mapping[str, Any]] = (
    {"name": "ask"},
    {"name": "prompts", "kind": "prefix"},
    {"name": "in_context"},
    {"name": "sampling"},
    {"name": "logit_lens"},
    {"name": "probe"},
    {"name": "membership"},
    {"name": "remind"},
    {"name": "trigger"},
    {"name": "relearn", "text": "forget"},
    {"name": "relearn", "text": "forget", "rank": 0},
    {"name": "relearn", "text": "half"},
    {"name": "relearn", "text": "retain"},
    {"name": "relearn", "text": "unrelated"},
    {"name": "quantise", "bits": 8},
    {"name": "quantise", "bits": 4},
)
"""What an audit does unless told otherwise; attacks whose data are missing are left out."""


def chosen(choices: Sequence[Any]) -> list[tuple[str, Attack, Any]]:
    """The attacks that a configuration names.

    Args:
      choices: names of `ATTACKS`, or mappings with `name` and settings.
    Returns:
      (label, attack, settings) each; labels such as "relearn(text=half)" name what differs from
      the attack's defaults and are unique.
    Raises:
      UserError: unknown attack or setting, a value out of range, the same attack twice.
    """
    found: list[tuple[str, Attack, Any]] = []
    for place, choice in enumerate(choices):
        given = {"name": choice} if isinstance(choice, str) else choice
        key = f"attacks.{place}"
        if not isinstance(given, Mapping) or "name" not in given:
            raise UserError(f"{key}: must be a name or a mapping with a name, got {choice!r}")
        name = str(given["name"])
        if name not in ATTACKS:
            raise UserError(f"{key}: no attack {name!r}. {did_you_mean(name, ATTACKS)}")
        settings = _settings(key, ATTACKS[name], {k: v for k, v in given.items() if k != "name"})
        label = label_of(name, settings)
        if any(label == other for other, _, _ in found):
            raise UserError(f"{key}: {label} is there already")
        found.append((label, ATTACKS[name], settings))
    return found


def label_of(name: str, settings: Any) -> str:
    """The attack's name with the settings that are not its defaults."""
    default = type(settings)()
    changed = [
        f"{each.name}={getattr(settings, each.name)}"
        for each in fields(settings)
        if getattr(settings, each.name) != getattr(default, each.name)
    ]
    return f"{name}({', '.join(changed)})" if changed else name


def _settings(key: str, attack: Attack, given: Mapping[str, Any]) -> Any:
    known = [each.name for each in fields(attack.settings)]
    for name in given:
        if name not in known:
            raise UserError(f"{key}.{name}: no such setting. {did_you_mean(name, known)}")
    try:
        return TypeAdapter(attack.settings).validate_python(dict(given))
    except ValidationError as error:
        faults = (
            f"{key}.{'.'.join(map(str, fault['loc']))}: {fault['msg']} (got {fault['input']!r})"
            for fault in error.errors()
        )
        raise UserError("\n".join(faults)) from None


def missing(attack: Attack, settings: Any, data: Any) -> list[str]:
    """What the attack needs and the data do not have: sets by name, then other things in words."""
    text = getattr(settings, "text", None)
    needs = [*attack.needs, *([text] if text not in (None, "half") else [])]
    return [*(name for name in needs if not data.records(name)), *attack.lacks(data, settings)]
