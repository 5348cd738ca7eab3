"""The settings of a sweep: what the grid spells out, and which of them may share a program."""

import dataclasses
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.config import SweepConfig, UnlearnConfig
from jaxforget.engine.errors import UserError
from jaxforget.engine.optimizer import make_optimizer
from jaxforget.studies.roles import donor, refuse_missing

SCALARS = ("optimizer.learning_rate", "optimizer.weight_decay")


@dataclass(frozen=True)
class Member:
    """One setting of a sweep.

    Attributes:
      index: its place, from 0.
      name: what distinguishes it, for tables and plots.
      overrides: the same by dotted key.
      config: the whole configuration.
    """

    index: int
    name: str
    overrides: Mapping[str, Any]
    config: UnlearnConfig


def members_of(config: SweepConfig) -> list[Member]:
    """Every setting of a sweep, checked.

    Raises:
      UserError: nothing to vary, a key twice or of a run's own, an invalid setting, no `evaluate`,
        or a method that cannot be trained side by side.
    """
    _refuse_ambiguous(config)
    names = list(config.grid)
    combinations = itertools.product(*(config.grid[key] for key in names))
    chosen = [
        {**dict(zip(names, values, strict=True)), **more}
        for values, more in itertools.product(combinations, config.settings or ({},))
    ]
    short = short_names(key for overrides in chosen for key in overrides)
    found = []
    for index, overrides in enumerate(chosen):
        tree = configs.overridden(config.base, overrides)
        place = str(pathlib.Path(config.run_dir) / "members" / str(index))
        built = configs.build(UnlearnConfig, {**tree, "run_dir": place}, "base")
        name = " ".join(f"{short[key]}={value}" for key, value in overrides.items())
        _refuse(built)
        found.append(Member(index, name, overrides, built))
    return found


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of every dotted key, or all of it where two end alike."""
    distinct = list(dict.fromkeys(keys))
    ends = Counter(key.rpartition(".")[2] for key in distinct)
    return {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in distinct}


def _refuse_ambiguous(config: SweepConfig) -> None:
    if not config.grid and not config.settings:
        raise UserError("grid, settings: there is nothing to vary")
    for key, values in config.grid.items():
        if not len(values):
            raise UserError(f"grid.{key}: has no values")
    for place, more in enumerate(config.settings):
        for key in more:
            if key in config.grid:
                raise UserError(f"settings.{place}.{key}: the grid varies it, too")
    for key in ("run_dir", "resume"):
        if key in config.base:
            raise UserError(f"base.{key}: belongs to the sweep, not to its settings")
        if key in config.grid or any(key in more for more in config.settings):
            raise UserError(f"{key}: belongs to the sweep, and cannot differ between its settings")


def _refuse(config: UnlearnConfig) -> None:
    method = methods.from_config(config.method)
    if config.evaluate is None:
        raise UserError("base.evaluate: a sweep compares its settings by it; name the suite's sets")
    for name in ("forget", "retain"):
        if getattr(config.evaluate, name) is None:
            raise UserError(
                f"base.evaluate.{name}: a sweep compares its settings by it; name a set"
            )
    if config.requests:
        raise UserError("base.requests: a sweep forgets one set; run several requests one by one")
    if method.objective is None or method.edit is not None:
        raise UserError(
            f"base.method: {method.name} edits the weights; a sweep trains its settings"
        )
    if method.prepare is not None:
        raise UserError(
            f"base.method: {method.name} with a mask measured on the data is not trained side by "
            "side; run its settings one by one"
        )
    refuse_missing(config, method)
    make_optimizer(config.optimizer, 1)


def numbers(config: UnlearnConfig) -> dict[str, float]:
    """What one program might hold several values of, by dotted key: all that is a real number.

    Whole numbers (a layer, a count of steps) are not: they decide what is computed.
    """
    parameters = dataclasses.asdict(methods.parameters_of(config.method))
    own = {f"method.{key}": each for key, each in parameters.items() if isinstance(each, float)}
    return {key: getattr(config.optimizer, key.split(".")[1]) for key in SCALARS} | own


def alike(members: Sequence[Member]) -> list[list[Member]]:
    """Members whose configurations are equal but for their `numbers`, and for the seed where it
    decides nothing but adapters and the order of the data."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(_rest(member.config), []).append(member)
    return list(groups.values())


def _rest(config: UnlearnConfig) -> str:
    """All of a configuration but what its members may differ in."""
    method = methods.from_config(config.method)
    parameters = dataclasses.asdict(methods.parameters_of(config.method))
    free = {key.split(".")[1] for key in numbers(config)}
    tree = configs.as_tree(config)
    del tree["run_dir"]
    for key in SCALARS:
        del tree["optimizer"][key.split(".")[1]]
    tree["method"] |= {key: None if key in free else each for key, each in parameters.items()}
    if not method.needs.random and donor(config, method) is None:
        del tree["train"]["seed"]
    return json.dumps(tree, sort_keys=True, default=str)
