"""Configuration of `jaxforget continual`: a stream of tasks, a strategy, what is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from jaxforget.config.schemas import LoraConfig, TrainConfig
from jaxforget.data.memory import Kind
from jaxforget.data.order import Order
from jaxforget.data.rehearsal import Law
from jaxforget.data.sources import Source
from jaxforget.data.template import Template
from jaxforget.engine.mesh import MeshConfig
from jaxforget.engine.optimizer import OptimizerConfig


@dataclass(frozen=True)
class ScoreConfig:
    """What an example is worth; higher is better. Pieces of one text share a column's value.

    Attributes:
      by: "likelihood", mean log-probability of its targets under `model`; "lqs", see
        `jaxforget.evals.learnability`, by a proxy trained from `model`; "column", a number in the
        data.
      column: of the data, for "column".
      model: a folder, id or run directory with the same tokenizer; None: the model that the
        stream starts from.
      target: a small clean set that the proxy is to become good at, for "lqs".
      steps, batch_size: of the proxy on the task's own examples, and `learning_rate` of its plain
        gradient descent.
      every: steps between two visits to the examples.
    """

    by: Literal["likelihood", "lqs", "column"] = "likelihood"
    column: str | None = None
    model: str | None = None
    target: Source | None = None
    steps: Annotated[int, Ge(2)] = 100
    batch_size: Annotated[int, Ge(1)] = 16
    learning_rate: Annotated[float, Gt(0)] = 8e-3
    every: Annotated[int, Ge(1)] = 10


@dataclass(frozen=True)
class ExamplesConfig:
    """Which of a task's examples are trained on, and in which order; see `jaxforget.data.order`.

    Attributes:
      kind: "shuffled", anew in every epoch; or by score in every epoch: upwards, downwards, or
        folded. Joint and cumulative training shuffle what is kept.
      layers: of folding.
      first: of folding, rank of the lowest score.
      keep: share of the examples that is trained on, those of the highest scores.
      score: see `ScoreConfig`.
    """

    kind: Literal["shuffled", "ascending", "descending", "folding"] = "folding"
    layers: Annotated[int, Ge(1)] = 3
    first: Literal[0, 1] = 0
    keep: Annotated[float, Gt(0), Le(1)] = 1.0
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass(frozen=True)
class TaskConfig:
    """One task, or domain, of the stream.

    Attributes:
      name: in tables and figures.
      data: what is trained on.
      evaluate: of the same kind, held out.
      steps: optimizer steps; None: `train.steps`, or as many as `train.epochs` need.
      order: of its examples; None: shuffled, all of them.
      junk: text of another quality, mixed into it as `mixture` says.
    """

    name: str
    data: Source
    evaluate: Source
    steps: Annotated[int, Ge(1)] | None = None
    order: ExamplesConfig | None = None
    junk: Source | None = None


@dataclass(frozen=True)
class MixtureConfig:
    """How much junk is mixed into the tasks that have some; see `jaxforget.data.mixture`.

    Attributes:
      share: of the tokens, in [0, 1].
      tokens: of each task, in whole examples; None: as many as the smaller of its two texts has.
    """

    share: Annotated[float, Ge(0), Le(1)]
    tokens: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class EffectConfig:
    """Two groups of runs, by label, whose metrics are compared by Hedges' g.

    Attributes:
      treatment, control: at least two runs each, such as seeds.
    """

    treatment: Annotated[tuple[str, ...], Len(2)]
    control: Annotated[tuple[str, ...], Len(2)]


@dataclass(frozen=True)
class RehearsalConfig:
    """How what is replayed is divided between the finished tasks.

    Attributes:
      law: see `jaxforget.data.rehearsal.Law`.
      rate: exponent of "power", or rate of "exponential".
      least: replayed examples of each finished task during a task, whatever the law says.
    """

    law: Law = "examples"
    rate: Annotated[float, Ge(0)] = 1.0
    least: Annotated[int, Ge(0)] = 1


@dataclass(frozen=True)
class MemoryConfig:
    """What is kept of finished tasks, and how it is replayed.

    Attributes:
      size: most examples kept of all tasks together.
      kind: see `jaxforget.data.memory.Kind`.
      share: of the examples of every step, drawn from the memory and mixed with the new ones:
        as much is computed as without, and as much less of the new task is seen.
      batch_size: examples a step of every role that a strategy replays; None: `train.batch_size`.
      rehearsal: by which law old tasks are replayed.
    """

    size: Annotated[int, Ge(1)] = 512
    kind: Kind = "balanced"
    share: Annotated[float, Ge(0), Lt(1)] = 0.0
    batch_size: Annotated[int, Ge(1)] | None = None
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)


@dataclass(frozen=True)
class InfiniteConfig:
    """A learning rate without an end; see `jaxforget.strategies.infinite`. Its peak is
    `optimizer.learning_rate`, whose own schedule and warm-up have no part in it.

    Attributes:
      constant: share of the peak that training goes on at, in (0, 1].
      warmup, cooldown: steps, at the beginning of the stream.
      anneal: last steps of the stream, in which the rate falls to `final`; 0: none, to be
        continued later.
      final: share of the peak at the end of the annealing, in (0, constant].
    """

    constant: Annotated[float, Gt(0), Le(1)] = 0.5
    warmup: Annotated[int, Ge(0)] = 0
    cooldown: Annotated[int, Ge(0)] = 0
    anneal: Annotated[int, Ge(0)] = 0
    final: Annotated[float, Gt(0), Le(1)] = 0.1


@dataclass(frozen=True)
class RecoveryConfig:
    """How soon is a task back that seems forgotten? Much of it is not lost, only out of reach.

    Attributes:
      steps: of plain training on a task's own examples, from the last model; each earlier task
        in turn.
      learning_rate: constant; None: a tenth of the optimizer's.
    """

    steps: Annotated[int, Ge(1)] = 10
    learning_rate: Annotated[float, Gt(0)] | None = None


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured of every task, at its end and while others are trained.

    Attributes:
      limit: held-out examples of each task; None: all.
      every: steps between two looks at the probe, on all tasks; 0: none but at the ends of tasks.
      probe: held-out examples of each task in the probe, the first ones.
      windows: of windowed forgetting and plasticity, in looks at the probe.
      first: looks at the beginning of a task whose mean score is its `learning_curve_area`.
      modules: at the end of every task, "change": mean absolute change of each module's parameters
        since the end of the task before; "condition": condition number of each matrix (a singular
        value decomposition each, on the host).
      random: score a model of random parameters, too, which `forward_transfer` is compared with;
        a model from scratch begins as one.
      batch_size: packed rows scored at a time.
      recovery: training again on every earlier task, after the last; None: not done.
      also: further sets, by name, that nobody trains on, measured at the ends of tasks: what does
        the stream do to other abilities?
    """

    limit: Annotated[int, Ge(1)] | None = None
    every: Annotated[int, Ge(0)] = 0
    probe: Annotated[int, Ge(1)] = 64
    windows: tuple[Annotated[int, Ge(1)], ...] = (10, 100)
    first: Annotated[int, Ge(1)] = 10
    modules: tuple[Literal["change", "condition"], ...] = ()
    random: bool = False
    batch_size: Annotated[int, Ge(1)] = 16
    recovery: RecoveryConfig | None = None
    also: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class ScratchConfig:
    """A Llama-shaped model from scratch, its tokenizer made from the stream's training text.

    Attributes:
      vocabulary: entries of the tokenizer, at most.
      width, layers, heads, inner: of the blocks; heads divide the width.
    """

    vocabulary: Annotated[int, Ge(320)] = 4096
    width: Annotated[int, Ge(8)] = 256
    layers: Annotated[int, Ge(1)] = 4
    heads: Annotated[int, Ge(1)] = 8
    inner: Annotated[int, Ge(8)] = 704


@dataclass(frozen=True)
class ContinualConfig:
    """`jaxforget continual`: train on tasks in turn and measure what is kept.

    Attributes:
      stream: the tasks.
      run_dir: where everything is written.
      model: as for unlearn; None: `scratch`.
      scratch: where there is no model.
      order: see `Order`.
      strategy: a name of `jaxforget.strategies`, a mapping with `name` and parameters, or a list.
      memory: what finished tasks leave.
      runs: label -> keys of this configuration that differ, such as
        {"ewc": {"strategy": {"name": "ewc", "weight": 100}}}: each is a run of its own in a folder
        of that name, and all are compared. Empty: one run.
      effects: name -> two groups of `runs` that are compared.
      reference: label of the run that the others are compared with (intransigence), usually the
        joint one.
      mixture: of junk and the tasks' own text.
      packing: "none": every example sees itself alone; "blocks": a task's examples are put end to
        end and cut into examples of `max_length` tokens.
      average: the loss of the task weighs all tokens of a step alike, or all examples.
      optimizer_reset: whether the optimizer's moments start anew with every task.
      schedule: the learning rate's schedule runs through once a task (with a warm-up and a decay:
        re-warmed and re-decayed), or once a stream; or an `InfiniteConfig`.
      views: an example is seen so often in a row, and as much later again; see
        `jaxforget.data.stream.walk`.
      measure: what is measured.
      resume, dtype, max_length, template, train, optimizer, lora, mesh: as for finetune; text is
        cut into pieces of `max_length`.
    """

    stream: Annotated[tuple[TaskConfig, ...], Len(1)]
    run_dir: str
    model: str | None = None
    scratch: ScratchConfig | None = None
    order: Order = "given"
    strategy: Any = "naive"
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    effects: Mapping[str, EffectConfig] = field(default_factory=dict)
    reference: str | None = None
    mixture: MixtureConfig | None = None
    packing: Literal["none", "blocks"] = "none"
    average: Literal["token", "example"] = "token"
    optimizer_reset: Literal["never", "per_task"] = "never"
    schedule: Literal["per_task", "stream"] | InfiniteConfig = "per_task"
    views: Annotated[int, Ge(1)] = 1
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    resume: Literal["auto", "never"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    export_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_length: Annotated[int, Ge(2)] | None = None
    template: Template = field(default_factory=Template)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=1.0))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=3e-4))
    lora: LoraConfig | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
