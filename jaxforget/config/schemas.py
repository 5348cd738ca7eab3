"""Configurations of the commands: frozen dataclasses, every field explained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BeforeValidator

from jaxforget.config.suites import Suite
from jaxforget.data.pairing import Pairing
from jaxforget.data.sources import Source, named
from jaxforget.data.template import Template
from jaxforget.engine.mesh import MeshConfig
from jaxforget.engine.optimizer import OptimizerConfig

_LISTED = BeforeValidator(
    lambda value: value if isinstance(value, (list, tuple, type(None))) else [value]
)


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank factors beside frozen weights instead of the weights.

    Attributes:
      rank: of every factor pair, >= 1.
      alpha: the product of the factors is scaled by alpha / rank.
      targets: regular expression over weight paths such as "layers/attn/q" and "layers/mlp/up".
    """

    rank: Annotated[int, Ge(1)] = 16
    alpha: Annotated[float, Gt(0)] = 32.0
    targets: str = "layers/(attn|mlp)/"


@dataclass(frozen=True)
class TrainConfig:
    """How long and in what pieces to train.

    Attributes:
      epochs: passes over the anchor set (forget, or the only one); ignored where `steps` is set.
      steps: optimizer steps; None: decided by `epochs`.
      batch_size: examples of the anchor set in one step, and as many of every other role.
      pairing: which examples of the roles meet, see `jaxforget.data.pairing.Pairing`; it changes
        how many steps an epoch has, so compare at equal `steps`.
      ratio: examples of every other role for one of the anchor; for "proportional", where None
        takes the sets' sizes.
      entity_column: column that says whom a row is about, for "modular"; rows of the retain set
        without it, or with an empty value or "general", are about nobody in particular.
      accumulate: micro-batches a step is divided into.
      peer_compat: with `accumulate`, average the micro-batches' own means, as open-unlearning
        does, instead of one mean over the step; targets in short micro-batches then weigh more.
      row_length: tokens of a packed row, a multiple of 64 at best; None: as long as it takes, one
        row for every shard and micro-batch, with attention inside of examples alone.
      compute: dtype of the matrix products; master weights stay as loaded.
      remat: what the backward pass recomputes: nothing, all but matrix products, or everything.
      seed: of data order and adapters.
      trainable: regular expression over parameter paths; None: all (with `lora`: its factors).
      realised_changes: log what each step does to the terms of its own batch, as
        `realised_change_<term>`; costs two forward passes a step.
      evaluate_every: steps between evaluations by the configured suite while training goes on, in
        evaluations.jsonl; 0: only the final model.
      select: which of the models so evaluated (the last among them) is exported: the best by
        "trade_off" (nearest to the oracle in forget probability and utility, or without one the
        largest harmonic mean of 1 - forget probability and utility), or by a metric's name, the
        largest, or after a minus the smallest: "-forget_prob". None: the last.
      log_every, save_every: steps between logged rows and between checkpoints (0: last only).
      keep: checkpoints kept.
      max_skipped: steps in a row with a loss or gradient that is not finite before stopping.
    """

    epochs: Annotated[float, Gt(0)] = 10.0
    steps: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 32
    pairing: Pairing = "cyclic"
    ratio: Annotated[float, Gt(0)] | None = None
    entity_column: str | None = None
    accumulate: Annotated[int, Ge(1)] = 1
    peer_compat: bool = False
    row_length: Annotated[int, Ge(8)] | None = None
    compute: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "dots"
    seed: Annotated[int, Ge(0)] = 0
    trainable: str | None = None
    realised_changes: bool = False
    evaluate_every: Annotated[int, Ge(0)] = 0
    select: str | None = None
    log_every: Annotated[int, Ge(1)] = 10
    save_every: Annotated[int, Ge(0)] = 0
    keep: Annotated[int, Ge(1)] = 2
    max_skipped: Annotated[int, Ge(1)] = 10


@dataclass(frozen=True)
class UnlearnConfig:
    """`jaxforget unlearn`: make a model forget one set and keep another.

    Attributes:
      model: Hugging Face folder or id, a .gguf file, or a run directory.
      forget, retain: training sets; a method that needs no retain data ignores none: leave it out.
      alternate: what to answer instead, for methods that need it: a file whose row i answers the
        forget set's row i, or "refusals", "mismatched" (another forget row's answer),
        "retain_answers" (a retain row's) or "random_choices" (one of the row's own "choices");
        None: what the method's paper takes.
      general: harmless prompts with normal answers, for methods that need them.
      requests: further sets to forget, after `forget` and one after the other. The training's
        state is carried on; the model that a method compares with is the one each request starts
        from, and the learning-rate schedule is run through once a request.
      method: name of a method, or a mapping with `name`, its parameters, `combiner` and
        `finishers`.
      run_dir: where everything is written.
      resume: "auto" continues a run directory; "never" refuses one that exists.
      dtype: of the master weights.
      export_dtype: of the exported weights; None: as they were stored.
      max_length: most tokens of one example, at most the model's context; None: 512, or the
        context where that is shorter.
    """

    model: str
    forget: Source
    run_dir: str
    retain: Source | None = None
    alternate: Source | None = None
    general: Source | None = None
    requests: Annotated[tuple[Source, ...], _LISTED] = ()
    method: Annotated[Mapping[str, Any], named("name")] = field(
        default_factory=lambda: {"name": "npo"}
    )
    resume: Literal["auto", "never"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    export_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_length: Annotated[int, Ge(2)] | None = None
    template: Template = field(default_factory=Template)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluate: Suite | None = None


@dataclass(frozen=True)
class FinetuneConfig:
    """`jaxforget finetune`: teach a model a set of examples.

    Attributes:
      model, run_dir, resume, dtype, export_dtype, max_length: as for unlearn.
      data: training set, or several that are joined.
      initialise: "pretrained" reads the model's weights; "random" reads only its config.json and
        tokenizer and draws the weights from `train.seed`.
      record_updates: a set whose rows may have to be forgotten one day: what every step that sees
        one of them does to the weights is kept under `updates/`, for the method amnesiac.
      gradient_penalty: weight of the sum over tensors of the norms of the loss's gradient, which
        prepares a model for the method iau (its paper takes 0.005); costs a second derivative.
    """

    model: str
    data: Annotated[
        tuple[Source, ...], BeforeValidator(lambda v: v if isinstance(v, list) else [v])
    ]
    run_dir: str
    initialise: Literal["pretrained", "random"] = "pretrained"
    resume: Literal["auto", "never"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    export_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_length: Annotated[int, Ge(2)] | None = None
    template: Template = field(default_factory=Template)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluate: Suite | None = None
    record_updates: Source | None = None
    gradient_penalty: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True)
class EvaluateConfig:
    """`jaxforget evaluate`: score a model with a suite, without training.

    Attributes:
      model, run_dir, dtype, max_length: as for unlearn.
      evaluate: the suite.
      compute: dtype of the matrix products.
      mesh: devices.
    """

    model: str
    evaluate: Suite
    run_dir: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"
    max_length: Annotated[int, Ge(2)] | None = None
    template: Template = field(default_factory=Template)
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass(frozen=True)
class AuditConfig:
    """`jaxforget audit`: attack a model that is said to have forgotten.

    Attributes:
      run: run directory of `jaxforget unlearn`, whose configuration says what was forgotten, or
        any model, with `start` and `forget` given here.
      run_dir: where everything is written; None: `audit` inside the run.
      start: the model before it forgot; None: the run's `model`.
      oracle: a model that never saw what was to be forgotten, of the same tokenizer; None: the
        run's `evaluate.oracle` where that is a run directory.
      forget, retain: records; None: the run's `evaluate.forget` (else `forget`) and `retain`.
      holdout: of the forget set's kind, seen by no model; some attacks need it.
      unrelated: harmless text of another kind; some attacks need it.
      further: more texts to relearn from, by names of one's own; those of the run's suite "blur"
        are there already.
      attacks: names, or mappings with `name` and settings; None: all whose data are there.
      limit: records used of each set; None: all.
      batch_size: prompts generated, and packed rows scored, at a time.
      max_new_tokens: longest generated answer.
      seed: of all that is drawn.
      dtype, compute: of the weights and of the matrix products.
      max_length, template: None: the run's.
    """

    run: str
    run_dir: str | None = None
    start: str | None = None
    oracle: str | None = None
    forget: Source | None = None
    retain: Source | None = None
    holdout: Source | None = None
    unrelated: Source | None = None
    further: Mapping[str, Source] = field(default_factory=dict)
    attacks: Annotated[tuple[Any, ...] | None, _LISTED] = None
    limit: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 16
    max_new_tokens: Annotated[int, Ge(1)] = 64
    seed: Annotated[int, Ge(0)] = 0
    resume: Literal["auto", "never"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"
    max_length: Annotated[int, Ge(2)] | None = None
    template: Template | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass(frozen=True)
class SweepConfig:
    """`jaxforget sweep`: many settings of one unlearning run, trained side by side.

    Attributes:
      base: configuration of the run, as for `jaxforget unlearn`, without `run_dir`; its `evaluate`
        judges every setting.
      grid: values by dotted key, e.g. {"optimizer.learning_rate": [1e-4, 3e-4]}; every combination
        is one setting.
      settings: further overrides by dotted key, each mapping combined with the whole grid.
      at_once: settings computed side by side, the others in turns within the same program: fewer
        need less memory. None: all, but 1 on a CPU, which gains nothing from wider arrays.
      run_dir: where everything is written; `model/` holds the best setting's model.
      resume: "auto" continues a run directory; "never" refuses one that exists.
    """

    base: Mapping[str, Any]
    run_dir: str
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    settings: tuple[Mapping[str, Any], ...] = ()
    at_once: Annotated[int, Ge(1)] | None = None
    resume: Literal["auto", "never"] = "auto"
