"""Amnesiac unlearning: subtract the updates of the training steps that saw what is to be forgotten.

`record_updates` keeps them while a model is trained, `read_updates` streams them back, `amnesiac`
subtracts them.
"""

import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax import Array

from jaxforget.combiners.terms import number, whole
from jaxforget.edits.checks import check_alike
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically
from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.engine.types import Metrics

type Share = float | Callable[[int, int], float]
"""How much of an update is subtracted: a number, or a function of how many of the step's
examples are to be forgotten and of how many it saw."""

PREFIX, SUFFIX = "update-", ".safetensors"
LEFT, RIGHT = "#left", "#right"
"""Endings of the names of two factors whose product is what a step did to a weight."""


class Update(NamedTuple):
    """What one training step did.

    Attributes:
      step: its number, from 0.
      update: parameters after it minus before it; leaves that did not move may be left out.
      examples: ids of the examples of its batch, without repetition.
    """

    step: int
    update: Params
    examples: tuple[int, ...]


type Recorder = Callable[[int, Params, Params, Any], pathlib.Path | None]
"""(step, parameters before, after, ids of its examples) -> the file written, or None."""


def amnesiac(
    params: Params,
    updates: Iterable[tuple[int, Params, Iterable[int]]],
    *,
    forget: Iterable[int],
    share: Share = 1.0,
) -> tuple[Params, Metrics]:
    """Parameters minus the updates of all steps whose batch held an example to be forgotten.

    Exact where an update does not depend on the parameters; otherwise the later steps still know
    of the subtracted ones, and a few steps on the retain set usually follow.

    Args:
      params: floating leaves, as the run left them.
      updates: of the run; see `Update` and `read_updates`. Read once, one at a time.
      forget: ids of the examples to forget; none changes nothing.
      share: see `Share`; finite. 1 subtracts whole updates, what they did for retained examples
        too; `lambda touched, seen: touched / seen` only the forgotten examples' part.
    Returns:
      (parameters of the same dtypes, {"steps": how many were subtracted, "examples": how many of
      `forget` their batches held, "norm": Euclidean norm of what was subtracted}).
    Raises:
      UserError: a step twice, an update that does not fit the parameters, or no step that saw any
        of `forget`.
    Source: Graves, Nagisetty and Ganesh 2021 (arXiv 2010.10981).
    """
    wanted = {int(example) for example in forget}
    total = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), params)
    steps, touched_steps, found = set(), 0, set()
    for step, update, examples in updates if wanted else ():
        if step in steps:
            raise UserError(f"amnesiac: step {step} is recorded twice")
        steps.add(step)
        seen = set(examples)
        touched = wanted & seen
        if not touched:
            continue
        factor = share(len(touched), len(seen)) if callable(share) else share
        total = _grown(total, update, number("amnesiac", "share", factor, None), step)
        touched_steps, found = touched_steps + 1, found | touched
    if wanted and not found:
        raise UserError(
            f"amnesiac: none of the {len(steps)} recorded steps saw any of the {len(wanted)} "
            f"examples to forget, e.g. {min(wanted)}"
        )
    edited = jax.tree.map(_without, params, total) if found else params
    squares = (jnp.square(leaf).sum() for leaf in jax.tree.leaves(total))
    return edited, {
        "steps": jnp.float32(touched_steps),
        "examples": jnp.float32(len(found)),
        "norm": jnp.sqrt(sum(squares, jnp.zeros(()))),
    }


def record_updates(
    folder: str | pathlib.Path,
    *,
    watched: Iterable[int] | None = None,
    scales: Mapping[str, Any] | None = None,
) -> Recorder:
    """A function that keeps what each step did, one file a step, written beside and renamed.

    A file is as large as the trained leaves in float32, and twice that for adapters: train
    adapters or small models, or watch few examples. A step recorded again, as after a resumption,
    replaces its file.

    Args:
      folder: made where it is missing.
      watched: ids of the examples that may ever have to be forgotten; steps without any of them
        are not written. None: all steps are.
      scales: where adapters are trained, the frozen leaves that hold their `lora_scale`. What a
        step did to the adapted weight, s A'B' - s AB, is kept as [s A', -s A] [B'; B].
    Returns:
      See `Recorder`. It reads the parameters to the host, so give it those before a step that
      donates them as a copy; ids may be an array such as `TokenBatch.example`, negative ones are
      empty slots. For runs of one process.
    Raises:
      UserError: (the function) trees that differ, ids that are no integers, a disk that refuses.
    """
    place = pathlib.Path(folder)
    some = None if watched is None else {int(example) for example in watched}
    known = {} if scales is None else flatten(scales)

    def record(step: int, before: Params, after: Params, examples: Any) -> pathlib.Path | None:
        ids = _ids(examples)
        if some is not None and not some.intersection(ids):
            return None
        check_alike("record_updates", "the parameters after the step", after, before)
        numbered = whole("record_updates", "step", int(step), 0)
        path = place / f"{PREFIX}{numbered:09d}{SUFFIX}"
        tensors = _changes(flatten(before), flatten(after), known)
        label = {
            "step": str(numbered),
            "examples": json.dumps(ids),
            "crc32": str(_checksum(numbered, ids, tensors)),
        }
        try:
            write_atomically(path, safetensors.numpy.save(tensors, metadata=label))
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error}") from error
        return path

    return record


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], scales: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What a step did to every weight: its difference, or two factors whose product it is."""
    found = {}
    for name in old:
        parent, _, kind = name.rpartition("/")
        if kind == "lora_a":
            scale = _float32(scales[f"{parent}/lora_scale"])[..., None, None]
            left = [_float32(new[name]), -_float32(old[name])]
            right = [_float32(tree[f"{parent}/lora_b"]) for tree in (new, old)]
            found[f"{parent}/w{LEFT}"] = np.concatenate(left, axis=-1) * scale
            found[f"{parent}/w{RIGHT}"] = np.concatenate(right, axis=-2)
        elif kind != "lora_b":
            found[name] = _float32(new[name]) - _float32(old[name])
    return found


def read_updates(
    folder: str | pathlib.Path, *, forget: Iterable[int] | None = None
) -> Iterator[Update]:
    """What `record_updates` kept, in the order of the steps, one file in memory at a time.

    Args:
      folder: that `record_updates` wrote to.
      forget: only steps that saw one of these examples; of others the label alone is read. None:
        all steps.
    Yields:
      See `Update`; its leaves are NumPy float32.
    Raises:
      UserError: no such folder, or a file that is damaged or was written by something else.
    """
    place = pathlib.Path(folder)
    if not place.is_dir():
        raise UserError(f"{place}: no such folder of recorded updates")
    wanted = None if forget is None else {int(example) for example in forget}
    for path in sorted(place.glob(f"{PREFIX}*{SUFFIX}"), key=lambda p: (len(p.name), p.name)):
        update = _read(path, wanted)
        if update is not None:
            yield update


def _read(path: pathlib.Path, wanted: set[int] | None) -> Update | None:
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            label = file.metadata() or {}
            step, examples = int(label["step"]), tuple(map(int, json.loads(label["examples"])))
            if wanted is not None and not wanted.intersection(examples):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            intact = int(label["crc32"]) == _checksum(step, examples, tensors)
    except KeyError as error:
        raise UserError(f"{path}: no recorded update, its label lacks {error}") from None
    except (OSError, safetensors.SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged, or no safetensors file: {error}") from None
    if not intact:
        raise UserError(f"{path}: damaged, it does not have the checksum in its label")
    return Update(step, unflatten(_multiplied(tensors)), examples)


def _multiplied(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    plain = {name: x for name, x in tensors.items() if not name.endswith((LEFT, RIGHT))}
    for name, left in tensors.items():
        if name.endswith(LEFT):
            weight = name.removesuffix(LEFT)
            plain[weight] = left @ tensors[f"{weight}{RIGHT}"]
    return plain


def _ids(examples: Any) -> list[int]:
    array = np.asarray(examples if hasattr(examples, "shape") else list(examples))
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"record_updates: ids of examples must be integers, got {array.dtype}")
    return sorted({int(each) for each in array.ravel() if each >= 0})


def _checksum(step: int, examples: Iterable[int], tensors: dict[str, np.ndarray]) -> int:
    running = zlib.crc32(json.dumps([step, list(examples), sorted(tensors)]).encode())
    for name in sorted(tensors):
        running = zlib.crc32(np.ascontiguousarray(tensors[name]).data, running)
    return running


def _float32(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float32)


def _grown(total: Params, update: Params, factor: float, step: int) -> Params:
    grown = flatten(total)
    for name, change in flatten(update).items():
        if name not in grown or grown[name].shape != np.shape(change):
            has = f"has shape {grown[name].shape}" if name in grown else "is not there"
            raise UserError(
                f"amnesiac: the update of step {step} changes {name!r} of shape "
                f"{np.shape(change)}, which {has} in the parameters; was another model recorded?"
            )
        grown[name] = grown[name] + factor * jnp.asarray(change, jnp.float32)
    return unflatten(grown)


def _without(leaf: Array, change: Array) -> Array:
    return (leaf.astype(jnp.float32) - change).astype(leaf.dtype)
