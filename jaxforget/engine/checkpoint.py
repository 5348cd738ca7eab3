"""Checkpoints of the whole state through Orbax: asynchronous, atomic, movable between meshes."""

import contextlib
import json
import logging
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from jaxforget.engine.errors import UserError
from jaxforget.engine.processes import all_agree
from jaxforget.engine.tree import path_string
from jaxforget.engine.types import State

log = logging.getLogger(__name__)

# Orbax warns at every save that there is nothing to merge where one process wrote it all
logging.getLogger("absl").addFilter(lambda said: "Skipping merge of OCDBT" not in str(said.msg))

# tensorstore tells of a full disk as ValueError, Orbax of a failed thread as RuntimeError
_FAILURES = (OSError, ValueError, RuntimeError)

COPIED = 2**28
"""Bytes of a state that is copied, on CPUs, to be saved while the run goes on. Larger ones are
waited for: memory is what runs of large models lack there."""


@dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
      state: on the devices and shardings that were asked for.
      data: what the caller saved beside it (strings and integers), e.g. the data's fingerprint.
      step: the step after which it was saved.
    """

    state: State
    data: dict[str, Any]
    step: int


class Checkpoints:
    """Folder of checkpoints, the newest `keep` of them.

    A thin owner of one Orbax checkpointer (which holds threads): use as a context manager.
    """

    def __init__(self, folder: str | pathlib.Path, *, keep: int = 2):
        """Opens or creates `folder`; half-written checkpoints of a killed run are removed.

        Args:
          folder: made if missing.
          keep: how many of the newest survive, >= 1.
        """
        self.folder = pathlib.Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        training = ocp.training
        # among devices of one process there is no disk to share, and each slice is a compilation
        context = ocp.Context()
        context.array.saving.use_replica_parallel = jax.process_count() > 1
        self._orbax = training.Checkpointer(
            str(self.folder),
            # the default policy drops saves while another is in flight
            save_decision_policy=cast(Any, training.save_decision_policies.FixedIntervalPolicy(1)),
            preservation_policy=cast(Any, training.preservation_policies.LatestN(keep)),
            cleanup_tmp_directories=True,
            context=context,
        )
        self._saving: Any = None  # Orbax's answer to the save in flight, which owns a thread

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except UserError:
            if kind is None:  # otherwise what is on its way out says more
                raise

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(self, step: int, state: State, data: dict[str, Any]) -> None:
        """Start saving in the background; waits first for a save still in flight.

        On CPUs a state above `COPIED` bytes is on disk when this returns.

        Args:
          step: steps taken so far.
          state: may be donated to the next step as soon as this returns.
          data: strings and integers to save beside it.
        Raises:
          UserError: the disk is full or the folder not writable.
        """
        if step in self.steps():
            return
        self.wait()
        shared = jax.default_backend() == "cpu"  # memory with the device: the next step overwrites
        small = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) <= COPIED
        if shared and small:
            state = jax.tree.map(jnp.copy, state)
        with self._writing():
            self._saving = self._orbax.save_checkpointables_async(
                step, {"state": _by_path(state), "data": {"json": json.dumps(data)}}, force=True
            )
        if self._saving is None:
            raise UserError(f"checkpoint {step} in {self.folder} was refused by Orbax")
        if shared and not small:
            self.wait()

    def wait(self) -> None:
        """Block until every save is on disk.

        Raises:
          UserError: one of them failed.
        """
        saving, self._saving = self._saving, None
        with self._writing():
            if saving is not None:
                saving.result()  # its thread ends when asked for this, and only then
            self._orbax.wait()

    def close(self) -> None:
        """Wait for saves in flight and release the threads.

        Raises:
          UserError: one of them failed.
        """
        try:
            self.wait()
        finally:
            with self._writing():
                self._orbax.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A failed write is told as one of the user's."""
        try:
            yield
        except _FAILURES as error:
            kept = ", ".join(map(str, self.steps())) or "none"
            raise UserError(
                f"cannot write a checkpoint in {self.folder}: {_first_line(error)} (complete "
                f"checkpoints there: {kept}; the same command resumes from the newest)"
            ) from error

    def restore(self, like: State) -> Restored | None:
        """The newest checkpoint that can be read, or None when there is none at all.

        Args:
          like: abstract or concrete state whose shapes, dtypes and shardings are wanted.
        Raises:
          UserError: there are checkpoints and every one of them is damaged or of another model.
        """
        steps, reasons = self.steps()[::-1], []
        for step in steps:
            found, reason = None, "another process cannot read it"
            try:
                found = self._read(step, like)
            except Exception as error:  # Orbax and tensorstore raise many kinds
                reason = _first_line(error)
            if not all_agree(found is not None) or found is None:
                reasons.append(f"step {step}: {reason}")
                log.warning(
                    "checkpoint %d cannot be read (%s); trying the one before", step, reason
                )
                continue
            for newer in [later for later in steps if later > step]:
                self._orbax.delete(newer)
            return Restored(*found, step)
        if reasons:
            raise UserError(
                f"no checkpoint in {self.folder} can be read: {'; '.join(reasons)}. Move the "
                "folder away to start again."
            )
        return None

    def _read(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        paths, treedef = jax.tree_util.tree_flatten_with_path(like)
        abstract = {path_string(path): _abstract(leaf) for path, leaf in paths}
        wanted = {"state": abstract, "data": {"json": ""}}
        loaded = self._orbax.load_checkpointables(step, wanted)
        leaves = [loaded["state"][path_string(path)] for path, _ in paths]
        return jax.tree_util.tree_unflatten(treedef, leaves), json.loads(loaded["data"]["json"])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:500]


def _by_path(state: State) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {path_string(path): leaf for path, leaf in leaves}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
