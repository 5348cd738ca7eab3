"""One or several requests to forget, one after the other: training, edit, what is kept of each."""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from jaxforget.config import FinetuneConfig, UnlearnConfig
from jaxforget.data.layout import Shape
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.errors import UserError
from jaxforget.engine.processes import first_before_others
from jaxforget.engine.run_dir import RunDirectory
from jaxforget.engine.train import CompiledStep
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Metrics
from jaxforget.methods import Method
from jaxforget.models.language_model import LanguageModel, load
from jaxforget.models.lora import merge_lora
from jaxforget.studies.batches import shared_shapes, steps_of
from jaxforget.studies.common import Events, Stopwatch, to_host
from jaxforget.studies.edit import edit_model
from jaxforget.studies.evaluate import read_suite, run_suite
from jaxforget.studies.reference import with_reference
from jaxforget.studies.selection import Judging
from jaxforget.studies.training import Request, Trained, train_model

log = logging.getLogger(__name__)

NEVER = 2**31


@dataclass(frozen=True)
class Work:
    """What stays the same over all requests of a run.

    Attributes:
      config, method: of the run.
      lm: the model before the first request.
      requests: tokenised sets by role, one mapping a request.
      run: the run directory.
      mesh: of the run.
      watched: examples whose steps are recorded, or None.
      programs: compiled steps, by the shapes of their batches.
    """

    config: UnlearnConfig | FinetuneConfig
    method: Method
    lm: LanguageModel
    requests: Sequence[Mapping[str, TokenisedSet]]
    run: RunDirectory
    mesh: Mesh
    watched: frozenset[int] | None = None
    programs: dict[Any, CompiledStep] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def shapes(self) -> dict[str, Shape]:
        """That suit the batches of every request; none where there is one only."""
        if len(self.requests) == 1:
            return {}
        return shared_shapes(self.requests, self.method, self.config.train, self.mesh)

    def place(self, index: int) -> RunDirectory:
        """Where the model and the results of a request go: the last one's are the run's."""
        return self.run if index + 1 == len(self.requests) else self.run.request(index)

    def told(self, events: Events, index: int) -> Events:
        """Events whose stages say which request they belong to."""
        if len(self.requests) == 1:
            return events
        name = f"request {index + 1} of {len(self.requests)}"
        return dataclasses.replace(events, stage=lambda text: events.stage(f"{name}: {text}"))


def refuse_apart(config: UnlearnConfig | FinetuneConfig, method: Method, requests: int) -> None:
    """Raise UserError where parts of a configuration do not go together."""
    if config.lora is not None and method.weights_only:
        raise UserError(f"lora: {method.name} takes none: {method.weights_only}")
    _refuse_judging(config, method)
    if requests > 1 and method.own_text is not None:
        raise UserError(
            f"requests: {method.name} writes one forget set; make a run of each request"
        )
    if requests > 1 and method.objective is not None and method.edit is not None:
        raise UserError(
            f"requests: {method.name} trains and then edits the starting model, which no later "
            "request starts from; make a run of each request"
        )


def _refuse_judging(config: UnlearnConfig | FinetuneConfig, method: Method) -> None:
    train = config.train
    asked = [name for name in ("evaluate_every", "select") if getattr(train, name)]
    if asked and config.evaluate is None:
        raise UserError(f"train.{asked[0]}: needs `evaluate`, by which models are judged")
    if asked and method.objective is None:
        raise UserError(f"train.{asked[0]}: {method.name} takes no steps")
    if train.select is not None and method.edit is not None:
        raise UserError(f"train.select: {method.name} edits the model after its last step")


def fulfil(
    work: Work, index: int, start: LanguageModel, events: Events, watch: Stopwatch
) -> tuple[Params, Trained | None, Metrics]:
    """Make the model forget one request.

    Args:
      work: see `Work`.
      index: of the request.
      start: the model it starts from.
      events: told of stages and progress.
      watch: began with the request.
    Returns:
      (all parameters on the host, merged; what the training left, None where the method does not
      train; the edit's scalars).
    """
    config, method, sets = work.config, work.method, work.requests[index]
    trained, params, edited = None, start.params, {}
    judging = judging_of(work, index, events)
    if method.objective is not None:
        if any(method.reference.values()):
            events.stage("scoring with the starting model")
        seed = config.train.seed
        with first_before_others():
            referenced = with_reference(start, sets, method.needs, folder=work.run.cache, seed=seed)
        events.stage(f"training ({method.name})")
        steps = tuple(steps_of(each, method, config.train) for each in work.requests)
        trained = train_model(
            work.lm,
            referenced,
            method,
            request=Request(index, steps, start, work.shapes, work.programs),
            run=work.run,
            settings=config.train,
            optimizer=config.optimizer,
            lora=config.lora,
            mesh=work.mesh,
            clock=watch.seconds,
            listen=events.progress,
            watched=work.watched,
            judging=judging,
            # an edit, or a request after this one, starts from the same weights again
            consume=len(work.requests) == 1 and method.edit is None and config.lora is None,
        )
        params = merge_lora(to_host(trained.params))
        if judging is not None and judging.select is not None:
            trained = dataclasses.replace(trained, selected=judging.selected())
            params = _selected(work, params, judging, trained)
    if method.edit is not None:
        events.stage(f"editing the weights ({method.name})")
        params, edited = edit_model(start, params, sets, method.edit, config.train, work.mesh)
    return params, trained, edited


def judging_of(work: Work, index: int, events: Events) -> Judging | None:
    """How a request's training is evaluated while it goes on, or None."""
    config, settings = work.config, work.config.train
    if config.evaluate is None or not (settings.evaluate_every or settings.select):
        return None
    suite = config.evaluate
    _, oracle = read_suite(suite, work.run)

    def judge(params: Params) -> dict[str, Any]:
        return run_suite(suite, work.lm, params, config, work.run, events)["metrics"]

    return Judging(
        run=work.place(index),
        every=settings.evaluate_every or NEVER,
        select=settings.select,
        judge=judge,
        save=lambda params, folder: work.lm.save_pretrained(folder, params, dtype=config.dtype),
        oracle=None if oracle is None else oracle["metrics"],
    )


def _selected(work: Work, params: Params, judging: Judging, trained: Trained) -> Params:
    """The parameters that `train.select` names, the last ones unless it names others."""
    log.info("selected the model after step %s of %d", trained.selected, trained.steps)
    if trained.selected in (None, trained.steps):
        return params
    return load(judging.run.best, dtype=work.config.dtype, compute=work.lm.compute).params


def finished_request(work: Work, index: int) -> LanguageModel | None:
    """The model after an earlier request that a killed run has completed, or None."""
    place = work.place(index)
    if not place.results.exists():
        return None
    try:
        json.loads(place.results.read_text())
        found = load(place.model, dtype=work.config.dtype, compute=work.lm.compute)
    except (UserError, OSError, ValueError) as error:
        log.warning("%s is damaged (%s); forgetting this request again", place.path, error)
        return None
    return dataclasses.replace(work.lm, params=found.params)


def earlier_metrics(work: Work) -> list[Any]:
    """Metrics of the requests before the last, from their results."""
    places = (work.place(index) for index in range(len(work.requests) - 1))
    return [json.loads(place.results.read_text())["metrics"] for place in places]
