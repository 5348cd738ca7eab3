"""The reference cache: scores of the starting model, computed once, before training.

No second model is held in memory. What is kept per labelled target is its log-probability and,
where a loss compares whole distributions, the final hidden state behind it.
"""

import hashlib
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxforget.data.sets import TokenisedSet
from jaxforget.engine.tree import flatten
from jaxforget.evals.teacher_forced import score_set
from jaxforget.models.language_model import LanguageModel
from jaxforget.objectives import Needs
from jaxforget.studies.inputs import HIDDEN, LOGP, RESIDUAL, VALUES

log = logging.getLogger(__name__)


def fingerprint(params: Mapping[str, Any], *identities: str) -> str:
    """SHA-256 of every leaf (path, dtype, shape, bytes) and of further strings."""
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        host = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{path} {host.dtype} {host.shape}\n".encode())
        digest.update(host.view(np.uint8).data if host.size else b"")
    for identity in identities:
        digest.update(f"\n{identity}".encode())
    return digest.hexdigest()


def with_reference(
    lm: LanguageModel,
    sets: Mapping[str, TokenisedSet],
    needs: Needs,
    *,
    folder: pathlib.Path,
    seed: int = 0,
    rows: int = 8,
    put: Callable[[Any], Any] = jax.device_put,
) -> dict[str, TokenisedSet]:
    """The sets, those that a method compares with the starting model carrying its scores.

    Args:
      lm: the starting model.
      sets: by role.
      needs: whose `reference`, `residual` and `random` say what is compared with.
      folder: scores are kept here under a fingerprint of (parameters, compute, data), so a
        resumed run reads them; damaged files are made again.
      seed: of the randomly initialised model, where a role is compared with one.
      rows: packed rows scored at a time.
      put: places a batch on the devices.
    """
    made, printed = dict(sets), {}
    for role, fields in needs.reference.items():
        if not fields:
            continue
        random = role in needs.random
        teacher = lm.reinitialised(seed) if random else lm
        if random not in printed:
            printed[random] = fingerprint(teacher.params, repr(lm.compute), repr(lm.config))
        model = printed[random]
        inner = needs.residual if "residual" in fields else None
        values = needs.values if "values" in fields else None
        identity = f"{model} {sets[role].fingerprint} {sorted(fields)} {inner}"
        identity += f" {values}" if values else ""  # older caches stay valid
        key = hashlib.sha256(identity.encode())
        file = folder / f"reference-{key.hexdigest()[:32]}"
        columns = _read(file, fields, int(sets[role].mask.sum()))
        if columns is None:
            log.info(
                "scoring the %s set with the %s model", role, "random" if random else "starting"
            )
            columns = _score(teacher, sets[role], "hidden" in fields, inner, values, rows, put)
            _write(file, columns)
        made[role] = sets[role].with_columns(**columns)
    return made


def _score(
    lm: LanguageModel,
    tokenised: TokenisedSet,
    hidden: bool,
    layer: int | None,
    values: tuple[int, int] | None,
    rows: int,
    put: Callable[[Any], Any],
) -> dict[str, np.ndarray]:
    table = score_set(
        lm.score,
        lm.params,
        tokenised,
        rows=rows,
        hidden=hidden,
        residual=layer,
        values=values,
        put=put,
    )
    found = {
        LOGP: table.logp,
        HIDDEN: table.hidden,
        RESIDUAL: table.residual,
        VALUES: table.values,
    }
    return {name: column for name, column in found.items() if column is not None}


def _names(fields: frozenset[str]) -> list[str]:
    asked = {"hidden": HIDDEN, "residual": RESIDUAL, "values": VALUES}
    return [LOGP, *(name for field, name in asked.items() if field in fields)]


def _read(folder: pathlib.Path, fields: frozenset[str], count: int) -> dict[str, np.ndarray] | None:
    columns = {}
    for name in _names(fields):
        try:
            # mapped, not read: the hidden states of a large set may exceed memory
            columns[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if len(columns[name]) != count:
            return None
    return columns


def _write(folder: pathlib.Path, columns: Mapping[str, np.ndarray]) -> None:
    if jax.process_index() != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in columns.items():
        part = folder / f"{name}.part.npy"
        np.save(part, values, allow_pickle=False)
        part.replace(folder / f"{name}.npy")
