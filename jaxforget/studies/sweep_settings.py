"""The settings of a sweep: what its configuration asks for, checked before anything is trained."""

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxforget import config as configs
from jaxforget import methods
from jaxforget.config import SweepConfig, UnlearnConfig
from jaxforget.engine.errors import UserError
from jaxforget.studies.roles import refuse_missing


@dataclass(frozen=True)
class Member:
    """One setting of a sweep.

    Attributes:
      index: its place, from 0.
      overrides: what distinguishes it, by dotted key.
      config: the whole configuration.
    """

    index: int
    overrides: Mapping[str, Any]
    config: UnlearnConfig

    @property
    def name(self) -> str:
        """For tables and plots."""
        return " ".join(f"{key.split('.')[-1]}={value}" for key, value in self.overrides.items())


def members_of(config: SweepConfig) -> list[Member]:
    """Every setting of a sweep, checked.

    Raises:
      UserError: nothing to vary, a key of a run's own, an invalid setting, no `evaluate`, or a
        method that cannot be trained side by side.
    """
    names = list(config.grid)
    empty = [key for key in names if not len(config.grid[key])]
    if empty or not (names or config.settings):
        raise UserError(
            f"grid.{empty[0]}: has no values"
            if empty
            else "grid, settings: there is nothing to vary"
        )
    for key in ("run_dir", "resume"):
        if key in config.base:
            raise UserError(f"base.{key}: belongs to the sweep, not to its settings")
    combinations = itertools.product(*(config.grid[key] for key in names))
    found = []
    for values, more in itertools.product(combinations, config.settings or ({},)):
        overrides = {**dict(zip(names, values, strict=True)), **more}
        tree = configs.overridden(config.base, overrides)
        place = str(pathlib.Path(config.run_dir) / "members" / str(len(found)))
        built = configs.build(UnlearnConfig, {**tree, "run_dir": place}, "base")
        member = Member(len(found), overrides, built)
        _refuse(member)
        found.append(member)
    return found


def _refuse(member: Member) -> None:
    config, method = member.config, methods.from_config(member.config.method)
    if config.evaluate is None:
        raise UserError("base.evaluate: a sweep compares its settings by it; name the suite's sets")
    for key in ("evaluate_every", "select"):
        if getattr(config.train, key):
            raise UserError(f"base.train.{key}: a sweep judges its settings at the end")
    if config.requests:
        raise UserError("base.requests: a sweep forgets one set; run several requests one by one")
    if method.objective is None or method.edit is not None:
        raise UserError(
            f"base.method: {method.name} edits the weights; a sweep trains its settings"
        )
    if method.own_text is not None:
        raise UserError(
            f"base.method: {method.name} makes a forget set for every setting; run them one by one"
        )
    if method.prepare is not None:
        raise UserError(
            f"base.method: {method.name} with a mask measured on the data is not trained side by "
            "side; run its settings one by one"
        )
    refuse_missing(config, method)


def alike(members: Sequence[Member]) -> list[list[Member]]:
    """Members whose configurations are equal but for numbers that one program might hold."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        tree = configs.as_tree(member.config)
        del tree["run_dir"], tree["train"]["seed"]
        for key in ("learning_rate", "weight_decay"):
            del tree["optimizer"][key]
        tree["method"] = {
            key: "number" if is_number(value) else value for key, value in tree["method"].items()
        }
        groups.setdefault(json.dumps(tree, sort_keys=True, default=str), []).append(member)
    return list(groups.values())


def is_number(value: Any) -> bool:
    """A number, but neither true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
