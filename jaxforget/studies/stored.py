"""What a model answers at the end of a task, kept in a file for the tasks that follow."""

import io
import pathlib
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget.data.sets import TokenisedSet
from jaxforget.data.stream import chosen
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically
from jaxforget.engine.processes import on_first
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Head
from jaxforget.evals.teacher_forced import TokenTable, score_set
from jaxforget.models import decoder
from jaxforget.models.language_model import LanguageModel
from jaxforget.studies.inputs import HIDDEN, LOGITS, LOGP, WORDS

TOP = 64  # largest logits that are kept of a target; what lies below them hardly weighs
_BLOCK = 1024
TORN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What NumPy raises of an archive that is gone or damaged."""

_COUNTS = "counts"


@dataclass(frozen=True)
class Stored:
    """What is kept of one finished task.

    Attributes:
      ids: examples of the joined set, int64 `[n]`.
      keys: see `jaxforget.data.memory`, float64 `[n]`.
      columns: answers, one entry a labelled target of these examples.
      counts: labelled targets of each, int64 `[n]`; needed where there are columns.
    """

    ids: np.ndarray
    keys: np.ndarray
    columns: Mapping[str, np.ndarray]
    counts: np.ndarray | None = None

    def only(self, ids: np.ndarray) -> "Stored":
        """What is kept of some of these examples."""
        places = {int(example): place for place, example in enumerate(self.ids)}
        chosen_places = np.asarray([places[int(example)] for example in ids], np.int64)
        columns = {}
        if self.columns:
            assert self.counts is not None
            ends = np.cumsum(self.counts)
            parts = [np.arange(ends[p] - self.counts[p], ends[p]) for p in chosen_places]
            inside = np.concatenate([np.zeros(0, np.int64), *parts])
            columns = {name: values[inside] for name, values in self.columns.items()}
        counts = None if self.counts is None else self.counts[chosen_places]
        return Stored(self.ids[chosen_places], self.keys[chosen_places], columns, counts)

    def of(self, tokenised: TokenisedSet) -> TokenisedSet:
        """These examples of the joined set, with their answers."""
        return chosen(tokenised, self.ids).with_columns(**self.columns)


def stored_answers(
    file: pathlib.Path,
    lm: LanguageModel,
    params: Params,
    tokenised: TokenisedSet,
    fields: Collection[str],
    *,
    ids: np.ndarray | None = None,
    keys: np.ndarray | None = None,
    head: bool = False,
) -> None:
    """Score a set and write what is asked for.

    Args:
      file: .npz, written beside and renamed.
      lm: how to score; `params` instead of its own.
      params: on the devices.
      tokenised: the examples.
      fields: of "logp", "hidden" and "top"; none: nothing is scored.
      ids, keys: of the examples, see `Stored`.
      head: keep the model's output projection as well, for "hidden".
    """
    arrays: dict[str, np.ndarray] = {}
    if fields:
        hidden = bool({"hidden", "top"} & set(fields))
        table = score_set(lm.score, params, tokenised, hidden=hidden)
        arrays = _columns(lm, params, table, fields)
        arrays[_COUNTS] = np.diff(table.offsets)
    if head:
        output = lm.head(params)
        arrays["head_weight"] = np.asarray(output.weight, np.float32)
        if output.bias is not None:
            arrays["head_bias"] = np.asarray(output.bias, np.float32)
        if output.softcap is not None:
            arrays["head_softcap"] = np.asarray(output.softcap, np.float64)
    arrays |= {"ids": ids} if ids is not None else {}
    arrays |= {"keys": keys} if keys is not None else {}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    on_first(lambda: write_atomically(file, buffer.getvalue()))


def losses_of(lm: LanguageModel, params: Params, tokenised: TokenisedSet) -> np.ndarray:
    """Mean negative log-likelihood of each example, float64 `[n]`, nats per token."""
    table = score_set(lm.score, params, tokenised)
    sums = np.add.reduceat(table.logp.astype(np.float64), table.offsets[:-1])
    return -sums / np.diff(table.offsets)


def _columns(
    lm: LanguageModel, params: Params, table: TokenTable, fields: Collection[str]
) -> dict[str, np.ndarray]:
    found = {LOGP: table.logp}
    if "hidden" in fields:
        assert table.hidden is not None
        found[HIDDEN] = table.hidden
    if "top" in fields:
        assert table.hidden is not None
        found[LOGITS], found[WORDS] = _largest(table.hidden, lm.head(params))
    return found


def _largest(hidden: np.ndarray, head: Head) -> tuple[np.ndarray, np.ndarray]:
    count = min(TOP, head.weight.shape[0])

    @jax.jit
    def block(rows: Any) -> Any:
        return jax.lax.top_k(decoder.logits(rows, head), count)

    values, words = [], []
    for start in range(0, len(hidden), _BLOCK):
        rows = hidden[start : start + _BLOCK]
        padded = np.zeros((_BLOCK, hidden.shape[1]), np.float32)
        padded[: len(rows)] = rows
        top = jax.device_get(block(jnp.asarray(padded)))
        values.append(top[0][: len(rows)])
        words.append(top[1][: len(rows)].astype(np.int32))
    return np.concatenate(values), np.concatenate(words)


def read_stored(file: pathlib.Path) -> Stored:
    """What `stored_answers` has written of a finished task.

    Raises:
      UserError: the file is gone or damaged.
    """
    arrays = read_arrays(file)
    about = {"ids", "keys", _COUNTS, "head_weight", "head_bias", "head_softcap"}
    columns = {name: array for name, array in arrays.items() if name not in about}
    return Stored(arrays["ids"], arrays["keys"], columns, arrays.get(_COUNTS))


def previous_answers(file: pathlib.Path, own: TokenisedSet) -> tuple[TokenisedSet, Head]:
    """A task's examples with what the model before it answers, and that model's head.

    Raises:
      UserError: the file is gone or damaged.
    """
    arrays = read_arrays(file)
    softcap = float(arrays["head_softcap"]) if "head_softcap" in arrays else None
    bias = jnp.asarray(arrays["head_bias"]) if "head_bias" in arrays else None
    columns = {name: arrays[name] for name in (LOGP, HIDDEN)}
    return own.with_columns(**columns), Head(jnp.asarray(arrays["head_weight"]), bias, softcap)


def read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a file that a stream has left for its later tasks.

    Raises:
      UserError: it is gone or damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            return dict(found)
    except TORN as error:
        raise UserError(
            f"{file} is gone or damaged ({error}); the stream cannot go on from its checkpoint. "
            "Choose another run_dir, or delete the checkpoints of this one to start again"
        ) from None
