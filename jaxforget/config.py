"""Configurations: frozen dataclasses <-> YAML with dotted overrides.

Every error names the key, what it got and what is allowed.
"""

import dataclasses
import functools
import json
import math
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt
from pydantic import BeforeValidator, Discriminator, Tag, TypeAdapter, ValidationError

from jaxforget.data.pairing import Pairing
from jaxforget.data.sources import DataSource, Source, named
from jaxforget.data.template import Template
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.mesh import MeshConfig
from jaxforget.engine.optimizer import OptimizerConfig
from jaxforget.engine.yaml_file import explain_yaml, parse_yaml, read_yaml
from jaxforget.evals.suites.blur import BlurSuite
from jaxforget.evals.suites.choice import ChoiceSuite
from jaxforget.evals.suites.harness import HarnessSuite
from jaxforget.evals.suites.lume import LumeSuite
from jaxforget.evals.suites.muse import MuseSuite
from jaxforget.evals.suites.own import OwnSuite
from jaxforget.evals.suites.rwku import RwkuSuite

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
      row_length: tokens of a packed row, a multiple of 64 at best; None: chosen to waste little.
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
class SuiteConfig:
    """The TOFU suite; `suite` may name another one, see `SUITES`.

    Attributes:
      suite: "tofu".
      forget, retain, real_authors, world_facts: evaluation sets; TOFU's *_perturbed files.
      holdout: examples of the forget set's kind that no model has seen; membership inference
        tells the forget set from them.
      oracle: results.json (or run directory) of a model that never saw the forget set.
      generate: also generate answers; score them with ROUGE, count refusals and gibberish.
      gradient_norms: also that membership attack; a backward pass for every example of forget
        and holdout.
      max_new_tokens: longest generated answer.
      batch_size: prompts generated at a time, and packed rows scored at a time.
      limit: rows used of each set; None: all.
      utility_over: "all" needs every one of the nine parts; "available" averages those there are
        and names the missing ones.
      peer_compat: reproduce the peer's known faults where published numbers depend on them.
    """

    suite: Literal["tofu"] = "tofu"
    forget: Source | None = None
    retain: Source | None = None
    real_authors: Source | None = None
    world_facts: Source | None = None
    holdout: Source | None = None
    oracle: str | None = None
    generate: bool = True
    gradient_norms: bool = False
    max_new_tokens: Annotated[int, Ge(1)] = 200
    batch_size: Annotated[int, Ge(1)] = 32
    limit: Annotated[int, Ge(1)] | None = None
    utility_over: Literal["all", "available"] = "all"
    peer_compat: bool = False


SUITES: Mapping[str, type] = {
    "tofu": SuiteConfig,
    "own": OwnSuite,
    "choice": ChoiceSuite,
    "rwku": RwkuSuite,
    "muse": MuseSuite,
    "blur": BlurSuite,
    "lume": LumeSuite,
    "harness": HarnessSuite,
}
"""Settings of every suite by the name that `suite` gives it."""


def _suite_named(value: Any) -> Any:
    """Which suite a mapping or its settings are; TOFU's where nothing is said."""
    if isinstance(value, Mapping):
        return value.get("suite", "tofu")
    return getattr(value, "suite", "tofu")


type Suite = Annotated[
    Annotated[SuiteConfig, Tag("tofu")]
    | Annotated[OwnSuite, Tag("own")]
    | Annotated[ChoiceSuite, Tag("choice")]
    | Annotated[RwkuSuite, Tag("rwku")]
    | Annotated[MuseSuite, Tag("muse")]
    | Annotated[BlurSuite, Tag("blur")]
    | Annotated[LumeSuite, Tag("lume")]
    | Annotated[HarnessSuite, Tag("harness")],
    Discriminator(_suite_named),
]


@dataclass(frozen=True)
class UnlearnConfig:
    """`jaxforget unlearn`: make a model forget one set and keep another.

    Attributes:
      model: Hugging Face folder or id, a .gguf file, or a run directory.
      forget, retain: training sets; a method that needs no retain data ignores none: leave it out.
      alternate: what to answer instead, for methods that need it: a file whose row i answers the
        forget set's row i, or "refusals", "mismatched" (another forget row's answer) or
        "retain_answers" (a retain row's); None: what the method's paper takes.
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


# keys that change how a run goes but not its numbers: a resumed run may differ in them
_FREE = {
    "attacks": None,
    "run_dir": None,
    "resume": None,
    "mesh": None,
    "evaluate": None,
    "train": {"evaluate_every", "log_every", "save_every", "keep", "max_skipped"},
}


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


def overridden(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with values set by dotted keys.

    Raises:
      UserError: a key below something that has no keys.
    """
    copy = json.loads(json.dumps(tree))
    for key, value in overrides.items():
        _apply(copy, f"{key}={json.dumps(value)}")
    return copy


def load[C](schema: type[C], path: str | pathlib.Path | None, overrides: Iterable[str] = ()) -> C:
    """Read a YAML file and `a.b=c` overrides into a configuration.

    Args:
      schema: `UnlearnConfig`, `FinetuneConfig` or `EvaluateConfig`.
      path: YAML file; None: overrides alone.
      overrides: "key.subkey=value" with the value in YAML.
    Raises:
      UserError: unreadable file, unknown key (with the closest one), value of a wrong type or
        out of range; every fault at once.
    """
    tree = {} if path is None else read_yaml(pathlib.Path(path))
    for override in overrides:
        _apply(tree, override)
    return build(schema, tree, str(path or "overrides"))


def build[C](schema: type[C], tree: Mapping[str, Any], source: str = "config") -> C:
    """Validate a nested mapping against a schema; see `load`."""
    try:
        config = _adapter(schema).validate_python(dict(tree), extra="forbid")
    except ValidationError as error:
        lines = [_explain(schema, fault, source) for fault in error.errors()]
        raise UserError("\n".join(dict.fromkeys(lines))) from None
    _refuse_infinite(dataclasses.asdict(config), source)
    return config


def _refuse_infinite(tree: Mapping[str, Any], where: str, parents: str = "") -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _refuse_infinite(value, where, f"{parents}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {parents}{key}: must be a finite number (got {value})")


def resolve[C](schema: type[C], given: C | Mapping[str, Any] | str | pathlib.Path) -> C:
    """A configuration from itself, from a nested mapping, or from the path of a YAML file."""
    if isinstance(given, schema):
        return given
    if isinstance(given, (str, pathlib.Path)):
        return load(schema, given)
    return build(schema, typing.cast(Mapping[str, Any], given))


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def to_yaml(config: Any) -> str:
    """The resolved configuration, every default written out."""
    return yaml.safe_dump(as_tree(config), sort_keys=False, allow_unicode=True)


def as_tree(config: Any) -> dict[str, Any]:
    """Nested dict of plain values."""
    return _adapter(type(config)).dump_python(config, mode="json")


def identity(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides a run's numbers."""
    tree = as_tree(config)
    for key, inner in _FREE.items():
        if inner is None:
            tree.pop(key, None)
        elif key in tree:
            tree[key] = {name: value for name, value in tree[key].items() if name not in inner}
    return tree


def defaults(config: Any) -> dict[str, Any]:
    """Default values of a configuration's options, nested as in `as_tree`; others are left out."""
    found = {}
    for each in dataclasses.fields(config):
        value = each.default
        if each.default_factory is not dataclasses.MISSING:
            value = each.default_factory()
        if value is not dataclasses.MISSING:
            found[each.name] = as_tree(value) if dataclasses.is_dataclass(value) else value
    return json.loads(json.dumps(found))


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: must be key=value, for example train.epochs=3")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"override {override!r}: not a YAML value: {explain_yaml(error)}"
        ) from error
    node, (*parents, leaf) = tree, key.split(".")
    for parent in parents:
        child = node.get(parent)
        if isinstance(child, str):  # a bare name or path stands for its mapping
            child = {"name" if parent == "method" else "path": child}
        if not isinstance(child, dict | None):
            raise UserError(
                f"override {override!r}: {parent} is a {type(child).__name__} without keys of its "
                f"own; set it whole, {parent}=..."
            )
        node[parent] = child or {}
        node = node[parent]
    if key == "method.name" and node.get("name") not in (None, value):
        node.clear()  # another method: the old one's parameters do not belong to it
    node[leaf] = value


def _explain(schema: Any, fault: Any, source: str) -> str:
    path = [str(part) for part in fault["loc"] if not str(part).startswith("function-")]
    where = ".".join(part for at, part in enumerate(path) if not _tagged(path, at))
    if fault["type"] == "union_tag_invalid":
        return f"{source}: {where}.suite: {did_you_mean(str(fault['ctx']['tag']), SUITES)}"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{source}: {where}: no such key. {did_you_mean(path[-1], _keys(schema, path[:-1]))}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{source}: {where}: missing; it has no default"
    got = "" if isinstance(fault["input"], Mapping) else f" (got {fault['input']!r})"
    got += "; allowed is 'start:stop' in quotes" if path[-1:] == ["rows"] else ""
    return f"{source}: {where}: {fault['msg']}{got}"


def _tagged(path: list[str], at: int) -> bool:
    """Is this part of a fault's path the name of a suite, which no key spells?"""
    return at > 0 and path[at - 1] == "evaluate" and path[at] in SUITES


def _keys(schema: Any, path: list[str]) -> list[str]:
    """Field names of the dataclass reached from `schema` by `path`."""
    for at, part in enumerate(path):
        if _tagged(path, at):
            schema = SUITES[part]
        elif dataclasses.is_dataclass(schema) and part in typing.get_type_hints(schema):
            schema = _dataclass_in(typing.get_type_hints(schema)[part])
    if not dataclasses.is_dataclass(schema):
        return []
    return [each.name for each in dataclasses.fields(schema)]


def _dataclass_in(hint: Any) -> Any:
    """The dataclass inside Optional, tuple, Annotated or an alias of these."""
    if isinstance(hint, typing.TypeAliasType):
        return _dataclass_in(hint.__value__)
    if dataclasses.is_dataclass(hint):
        return hint
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        found = (_dataclass_in(each) for each in typing.get_args(hint))
        return next((each for each in found if each is not None), None)
    return None


def suite_sources(suite: SuiteConfig) -> dict[str, DataSource]:
    """The suite's sets by name, those that are given."""
    names = ("forget", "retain", "real_authors", "world_facts", "holdout")
    return {name: getattr(suite, name) for name in names if getattr(suite, name) is not None}
