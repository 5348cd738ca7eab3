"""What happens between two tasks: what is stored of the one, what has to be known before the other.

All of it depends on the state at the end of a task alone, so a killed run does it again.
"""

import dataclasses

from jaxforget.config.stream import ContinualConfig
from jaxforget.data import memory as memories
from jaxforget.data.stream import TRAIN, chosen
from jaxforget.edits.material import Material
from jaxforget.engine.errors import UserError
from jaxforget.engine.processes import on_first
from jaxforget.engine.tree import Params
from jaxforget.models.language_model import load
from jaxforget.models.lora import merge_lora
from jaxforget.strategies import Strategy
from jaxforget.studies.common import to_host
from jaxforget.studies.material import material
from jaxforget.studies.stored import losses_of, stored_answers
from jaxforget.studies.streams.stream import Stream
from jaxforget.studies.training import divide


def refuse_adapters(strategy: Strategy, config: ContinualConfig) -> None:
    """Refuse a strategy of adapters where there are none.

    Raises:
      UserError: it is one.
    """
    if strategy.fresh_adapters and config.lora is None:
        raise UserError(f"strategy: {strategy.name} trains adapters; set lora.rank")


def keep_answers(stream: Stream, task: int, everything: Params) -> None:
    """What has to be known of the model (all leaves, on the devices) before a task begins."""
    references = stream.strategy.references(task)
    if TRAIN in references and references[TRAIN][0] == "previous":
        own = chosen(stream.tokenised, stream.tasks[task].ids)
        file = stream.folder(task) / "previous.npz"
        stored_answers(file, stream.lm, everything, own, {"hidden"}, head=True)


def keep_examples(stream: Stream, task: int, everything: Params) -> None:
    """Which examples of a task that has ended are kept, and what the model answers to them."""
    own, size = stream.tasks[task].ids, stream.config.memory.size
    losses = None
    if stream.config.memory.kind == "hardest":
        losses = losses_of(stream.lm, everything, chosen(stream.tokenised, own))
    ids, keys = memories.order_of(own, (stream.config.train.seed, task), losses)
    stored_answers(
        stream.folder(task) / "memory.npz",
        stream.lm,
        everything,
        chosen(stream.tokenised, ids[:size]),
        _stored_fields(stream),
        ids=ids[:size],
        keys=keys[:size],
    )


def _stored_fields(stream: Stream) -> set[str]:
    """What of the model's answers has to be stored with an example."""
    found = stream.strategy.references(len(stream.tasks) - 1).values()
    fields = {field for source, some in found for field in some if source == "stored"}
    if "hidden" in fields:
        raise UserError(
            f"strategy: {stream.strategy.name}: hidden states need the head of the model of "
            'every task; store "top" or "target" instead'
        )
    return fields


def measured_on(stream: Stream, task: int, leaves: tuple[Params, Params]) -> Material | None:
    """A task that has ended and the model (trained leaves, frozen leaves), where the strategy
    measures something."""
    if stream.strategy.guard.measure is None:
        return None
    sets = {TRAIN: chosen(stream.tokenised, stream.tasks[task].ids)}
    return material(stream.lm, leaves, sets, stream.config.train, stream.mesh)


def fold(stream: Stream, task: int, everything: Params) -> None:
    """Write the model before a task with the adapters of the one before in its weights."""
    whole = dataclasses.replace(stream.lm, params=merge_lora(to_host(everything)))
    folder = stream.folder(task) / "start"
    on_first(lambda: whole.save_pretrained(folder, dtype=stream.config.dtype))


def unfolded(stream: Stream, task: int) -> tuple[Params, Params]:
    """(new adapters of a task, the weights that they stand beside), on the host."""
    base = load(stream.folder(task) / "start", dtype=stream.config.dtype)
    lm = dataclasses.replace(stream.lm, params=base.params)
    seed = stream.config.train.seed + task
    settings = dataclasses.replace(stream.config.train, seed=seed)
    return divide(lm, stream.config.lora, settings)
