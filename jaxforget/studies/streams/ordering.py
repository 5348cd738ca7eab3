"""Which of a task's examples are trained on, and in which order, by scores that are kept in a file.

The scores depend on the data, the configuration and the model before the stream alone.
"""

import io
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxforget import config as configs
from jaxforget.config.stream import ContinualConfig, ExamplesConfig, ScoreConfig
from jaxforget.data.order import folded, selected
from jaxforget.data.pack import pack_all
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet, fingerprint_of
from jaxforget.data.sources import load_records
from jaxforget.data.stream import TRAIN, Draws, planned
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.engine.files import write_atomically
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory
from jaxforget.engine.tree import Params
from jaxforget.engine.types import TokenBatch
from jaxforget.evals.gradient_norms import one_a_row
from jaxforget.evals.learnability import lqs
from jaxforget.models.language_model import LanguageModel, load
from jaxforget.studies.common import tokens_of
from jaxforget.studies.stored import TORN, losses_of


def ordered(how: ExamplesConfig, scores: np.ndarray) -> np.ndarray:
    """Places of the examples to train on, in order, int64; see `ExamplesConfig`.

    Args:
      how: kind, layers and share.
      scores: of every example of the task `[n]`, higher is better.
    """
    kept = selected(scores, how.keep)
    if how.kind == "shuffled":
        return kept
    if how.kind == "descending":
        return kept[np.argsort(-scores[kept], kind="stable")]
    layers = how.layers if how.kind == "folding" else 1
    return kept[folded(scores[kept], layers, how.first)]


def scores_of(
    place: int,
    lm: LanguageModel,
    records: Sequence[Record],
    tokenised: TokenisedSet,
    config: ContinualConfig,
    run: RunDirectory,
) -> np.ndarray:
    """Scores of a task's examples, read from the run directory where they were measured before.

    Likelihoods are measured on all devices; LQS by every process on one of its own.

    Args:
      place: of the task in the configuration.
      lm: the model that the stream starts from.
      records, tokenised: what the task is trained on.
      config: of the run.
      run: its directory.
    Returns:
      float64 `[n]`, higher is better.
    Raises:
      UserError: no such column, something else than a number in it, no target, another tokenizer.
    """
    task = config.stream[place]
    assert task.order is not None
    how = task.order.score
    if how.by == "column":
        return _column(how, records, tokenised, task.name)
    file = run.path / "tasks" / f"scores-{place}.npz"
    mark = fingerprint_of({}, tokenised.fingerprint, str(configs.as_tree(how)), str(config.model))
    found = _read(file, mark)
    if found is None:
        model = _judge(how, lm, task.name)
        if how.by == "likelihood":
            found = _likelihood(model, tokenised, config)
        else:
            found = _lqs(how, model, tokenised, config, run, task.name)
        on_first(lambda: _write(file, mark, found))
    return found


def _read(file: pathlib.Path, mark: str) -> np.ndarray | None:
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["scores"] if str(arrays["mark"]) == mark else None
    except TORN:  # measured again
        return None


def _write(file: pathlib.Path, mark: str, scores: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, scores=scores, mark=np.asarray(mark))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, buffer.getvalue())


def _column(
    how: ScoreConfig, records: Sequence[Record], tokenised: TokenisedSet, name: str
) -> np.ndarray:
    if how.column is None:
        raise UserError(f"stream.{name}.order.score: set its column")
    values = {}
    for record in records:
        value = record.extra.get(how.column)
        if how.column not in record.extra:
            hint = did_you_mean(how.column, record.extra)
            raise UserError(f"{record.source}, row {record.row}: no column {how.column!r}. {hint}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(
                f"{record.source}, row {record.row}: {how.column!r} must be a number to order by, "
                f"is {value!r:.60}"
            )
        values[record.row] = float(value)
    return np.asarray([values[int(row)] for row in tokenised.rows])


def _judge(how: ScoreConfig, lm: LanguageModel, name: str) -> LanguageModel:
    """The model that scores."""
    if how.model is None:
        return lm
    found = load(how.model, dtype="float32")
    if found.tokenizer is None or found.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise UserError(
            f"stream.{name}.order.score.model: {how.model} has another tokenizer than the model "
            "that is trained; it cannot score its pieces"
        )
    return found


def _likelihood(lm: LanguageModel, tokenised: TokenisedSet, config: ContinualConfig) -> np.ndarray:
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        params = meshes.put(lm.params, meshes.shardings(lm.params, mesh))
        return -losses_of(lm, params, tokenised)


def _lqs(
    how: ScoreConfig,
    lm: LanguageModel,
    tokenised: TokenisedSet,
    config: ContinualConfig,
    run: RunDirectory,
    name: str,
) -> np.ndarray:
    if how.target is None:
        raise UserError(f"stream.{name}.order.score: lqs needs a target, a small clean set")
    target = tokens_of(load_records(how.target), lm, config, run)
    longest = max(int(tokenised.lengths.max()), int(target.lengths.max()))
    length = -(-longest // 64) * 64
    draws = Draws(np.arange(len(tokenised)), np.zeros(0, np.int64), how.batch_size, (0, 7))
    (proxy,) = planned({TRAIN: tokenised}, [(draws, how.steps)], length=length, row_multiple=1)
    rows = max(1, min(config.measure.batch_size, len(target)))
    score = lm.score

    def sums(params: Params, batch: TokenBatch) -> tuple[Array, Array]:
        found = score(params, batch)
        return -(found.logp * found.mask).sum(), found.mask.sum().astype(jnp.float32)

    found = lqs(
        sums,
        jax.tree.map(jnp.asarray, lm.params),
        proxy=[proxy.at(step)[0][TRAIN] for step in range(how.steps)],
        target=pack_all(target, rows=rows, length=length),
        examples=[(np.asarray(b.example)[:, 0], b) for b in one_a_row(tokenised, rows)],
        learning_rate=how.learning_rate,
        every=how.every,
    )
    return found.score
