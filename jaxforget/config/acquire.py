"""Configuration of `jaxforget acquire`: facts injected into training, and what is left of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Len
from pydantic import BeforeValidator

from jaxforget.config.schemas import LoraConfig, TrainConfig
from jaxforget.config.stream import ScratchConfig
from jaxforget.data.injection import Mode
from jaxforget.data.sources import Source
from jaxforget.engine.mesh import MeshConfig
from jaxforget.engine.optimizer import OptimizerConfig

type Sources = Annotated[
    tuple[Source, ...], Len(1), BeforeValidator(lambda v: v if isinstance(v, list | tuple) else [v])
]


@dataclass(frozen=True)
class InjectionConfig:
    """Who is presented when; see `jaxforget.data.injection`.

    Attributes:
      modes: texts of each mode, taken from the facts in this order; the others are not used.
      start: update (from 0) of the first presentation; before it, and after the last one, there is
        the base corpus alone.
      every: updates between two presentations of one text.
      times: presentations of a text that is duplicated or paraphrased.
      per_step: texts in one batch; None: all that are presented.
      apart: updates between the batches of neighbouring groups.
    """

    modes: Annotated[Mapping[Mode, Annotated[int, Ge(1)]], Len(1)]
    start: Annotated[int, Ge(0)] = 0
    every: Annotated[int, Ge(1)] = 100
    times: Annotated[int, Ge(1)] = 10
    per_step: Annotated[int, Ge(1)] | None = None
    apart: Annotated[int, Ge(1)] = 1


@dataclass(frozen=True)
class LookConfig:
    """When probes are scored, and how their curves are read.

    Attributes:
      every: updates between two looks, from the first presentation on; where there are probes it
        divides `injection.every` and `injection.apart`, so that one is before each presentation.
      window: updates after a presentation in which its gain may peak; see
        `jaxforget.evals.acquisition`.
      outliers: interquartile ranges beyond which a probe does not count; the paper's released code
        takes 2.
      resamples: of the bootstrap over facts.
      batch_size: packed rows scored at a time.
    """

    every: Annotated[int, Ge(1)] = 1
    window: Annotated[int, Ge(1)] = 50
    outliers: Annotated[float, Gt(0)] = 1.5
    resamples: Annotated[int, Ge(1)] = 200
    batch_size: Annotated[int, Ge(1)] = 16


@dataclass(frozen=True)
class RecallConfig:
    """Recognition and recall of the texts themselves; see `jaxforget.evals.fewshot_memory`.

    Attributes:
      at: updates after the last presentation at which the texts are recalled, by generation; what
        is recalled before the first presentation is the floor.
      max_tokens: of each text that count, the first ones; the first half of them is the cue.
      batch_size: texts continued at a time.
    """

    at: Annotated[tuple[Annotated[int, Ge(0)], ...], Len(1)] = (0, 1, 2, 5, 10, 20, 50, 100)
    max_tokens: Annotated[int, Ge(4)] = 64
    batch_size: Annotated[int, Ge(1)] = 32


@dataclass(frozen=True)
class PrimingConfig:
    """Memory and priming of the texts' keywords by category; see `jaxforget.evals.priming`.

    Attributes:
      memory: kind of the probes that ask for a keyword in its own text.
      priming: kind of those that have the keyword's theme but nothing to do with the text.
      category: column that says what kind of text it is.
    """

    memory: str = "memory"
    priming: str = "priming"
    category: str = "category"


@dataclass(frozen=True)
class AcquireConfig:
    """`jaxforget acquire`: teach a model facts while it trains on something else.

    Attributes:
      facts: records of plain text, `columns: {text: NAME}`; their other columns hold paraphrases
        and probes.
      base: the corpus otherwise trained on, one or several sources.
      injection: which facts are presented when.
      run_dir: where everything is written.
      paraphrases: column of other wordings, for the mode "paraphrased".
      probes: kind -> (column of beginnings, column of ends), scored at every look.
      joiner: between the beginning and the end of a probe.
      look: when probes are scored.
      recall: recognition and recall of the texts, against those of the mode "never"; None: none.
      priming: what the texts do to their keywords elsewhere; None: not looked at.
      model: as for unlearn; None: `scratch`, its tokenizer made from the base corpus.
      scratch: where there is no model.
      max_length: tokens of a row; a longer text takes several.
      train: `steps` (or `epochs` of the base corpus) are all updates, those before `injection`
        starts included; `batch_size` are rows.
      resume, dtype, export_dtype, optimizer, lora, mesh: as for finetune.
    """

    facts: Source
    base: Sources
    injection: InjectionConfig
    run_dir: str
    paraphrases: str | None = None
    probes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    joiner: str = " "
    look: LookConfig = field(default_factory=LookConfig)
    recall: RecallConfig | None = None
    priming: PrimingConfig | None = None
    model: str | None = None
    scratch: ScratchConfig | None = None
    resume: Literal["auto", "never"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    export_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_length: Annotated[int, Ge(8)] | None = None
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=1.0))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-4, schedule="constant")
    )
    lora: LoraConfig | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
