"""A forget set that the model writes itself: learn a little, write, judge, choose."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxforget.combiners import weighted_sum
from jaxforget.config import TrainConfig, UnlearnConfig
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.sources import load_records
from jaxforget.data.tokenise import prompt_ids
from jaxforget.edits import importance
from jaxforget.edits.compatibility import OwnText, forgetting_compatibility, forgotten_texts
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.files import write_atomically
from jaxforget.engine.processes import on_first
from jaxforget.engine.run_dir import RunDirectory
from jaxforget.engine.tree import Params, flatten, unflatten
from jaxforget.methods import Method, from_parts
from jaxforget.models.language_model import LanguageModel
from jaxforget.objectives import retain_objective
from jaxforget.studies.common import Events, Stopwatch, longest, tokens_of
from jaxforget.studies.material import WholePasses
from jaxforget.studies.training import divide, train_model

log = logging.getLogger(__name__)

FORGET, RETAIN = "forget", "retain"


def with_own_text(
    config: UnlearnConfig,
    method: Method,
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    run: RunDirectory,
    events: Events,
) -> dict[str, TokenisedSet]:
    """The sets with the forget set replaced by answers of the model itself.

    Its prompts are asked, its own answers are not read. What the model writes, what every text
    scores and which are chosen is left in `own_text.jsonl`; a resumed run reads it.

    Args:
      config, method: of the run; `method.own_text` is set.
      lm: the starting model.
      sets: by role.
      run: the run directory.
      events: see `Events`.
    Raises:
      UserError: a record without a prompt, or a model that writes nothing.
    """
    own = method.own_text
    assert own is not None
    file = run.path / "own_text.jsonl"
    rows = _read(file)
    if rows is None:
        events.stage("writing texts to forget")
        rows = fresh = _written(config, own, lm)
        on_first(lambda: _save(file, fresh))
    if not all("chosen" in row for row in rows):
        events.stage("learning a little, to judge the texts by")
        scores = _judged(config, own, lm, sets[RETAIN], rows, run)
        rows = told = _chosen(rows, scores, own, config.train.seed)
        on_first(lambda: _save(file, told))
    kept = [_record(row, file) for row in rows if row["chosen"]]
    return {**sets, FORGET: tokens_of(kept, lm, config, run)}


def _read(file: pathlib.Path) -> list[dict[str, Any]] | None:
    if not file.exists():
        return None
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert rows and all({"row", "prompt", "answer"} <= row.keys() for row in rows)
    except (ValueError, AssertionError, AttributeError):
        log.warning("%s is damaged; writing the texts again", file)
        return None
    return rows


def _save(file: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))


def _record(row: Mapping[str, Any], file: pathlib.Path) -> Record:
    return Record(row["prompt"], row["answer"], row["row"], str(file))


def _written(config: UnlearnConfig, own: OwnText, lm: LanguageModel) -> list[dict[str, Any]]:
    """One text of the model to each prompt; blank ones are left out."""
    records = load_records(config.forget)
    for record in records:
        if not record.prompt:
            raise UserError(
                f"row {record.row} of {record.source}: has no prompt; the model answers prompts"
            )
    prompts = prompt_ids(records, lm.tokenizer, config.template, longest(config, lm))
    tokens = lm.generate(
        lm.params,
        prompts,
        max_new_tokens=own.max_new_tokens,
        batch_size=config.train.batch_size,
        key=jax.random.key(config.train.seed),
        temperature=own.temperature,
    )
    texts = lm.tokenizer.batch_decode(
        [list(map(int, ids)) for ids in tokens], skip_special_tokens=True
    )
    rows = [
        {"row": record.row, "prompt": record.prompt, "answer": text.strip()}
        for record, text in zip(records, texts, strict=True)
        if text.strip()
    ]
    if not rows:
        raise UserError("forget: the model answers none of these prompts with any text")
    if len(rows) < len(records):
        log.warning("%d of %d texts are blank and left out", len(records) - len(rows), len(records))
    return rows


def _judged(
    config: UnlearnConfig,
    own: OwnText,
    lm: LanguageModel,
    retain: TokenisedSet,
    rows: Sequence[Mapping[str, Any]],
    run: RunDirectory,
) -> np.ndarray:
    """`forgetting_compatibility` of every text."""
    settings, mesh = config.train, meshes.make_mesh(config.mesh)
    base, frozen = divide(lm, config.lora, settings)

    def place(leaves: Params) -> Params:
        return meshes.put(leaves, meshes.shardings(leaves, mesh))

    base, frozen = place(base), place(frozen)
    learned = _learned(config, own, lm, retain, run, mesh, base)
    texts = tokens_of([_record(row, run.path) for row in rows], lm, config, run)
    passes = WholePasses({FORGET: texts, RETAIN: retain}, settings, mesh)
    singly = own.estimator == "per_example"
    with jax.set_mesh(mesh):
        batches = passes(RETAIN, singly=singly)
        fisher = importance(lm.score, learned, batches, estimator=own.estimator, frozen=frozen)
        return forgetting_compatibility(
            lm.score,
            base,
            learned,
            fisher,
            passes(FORGET, singly=True),
            rate=own.rate or config.optimizer.learning_rate,
            frozen=frozen,
        )


def _learned(
    config: UnlearnConfig,
    own: OwnText,
    lm: LanguageModel,
    retain: TokenisedSet,
    run: RunDirectory,
    mesh: Mesh,
    base: Params,
) -> Params:
    """The trained leaves after a short training on the retain set."""
    place = RunDirectory(run.path / "learned")
    place.path.mkdir(exist_ok=True)
    method = from_parts("learn", retain_objective(), weighted_sum({RETAIN: 1.0}))
    plain = TrainConfig()
    settings = dataclasses.replace(
        config.train,
        epochs=own.learn_epochs,
        steps=None,
        pairing=plain.pairing,
        ratio=plain.ratio,
        entity_column=plain.entity_column,
        realised_changes=False,
    )
    trained = train_model(
        lm,
        {RETAIN: retain},
        method,
        run=place,
        settings=settings,
        optimizer=config.optimizer,
        lora=config.lora,
        mesh=mesh,
        clock=Stopwatch().seconds,
    )
    flat = flatten(trained.params)
    return unflatten({path: flat[path] for path in flatten(base)})


def _chosen(
    rows: Sequence[Mapping[str, Any]], scores: np.ndarray, own: OwnText, seed: int
) -> list[dict[str, Any]]:
    picked = set(forgotten_texts(scores, own.share, own.select, seed).tolist())
    return [
        {**row, "compatibility": float(score), "chosen": index in picked}
        for index, (row, score) in enumerate(zip(rows, scores, strict=True))
    ]
