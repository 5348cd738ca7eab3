"""The recovery probe: a few steps on an earlier task, from the model that the stream ended with."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from jaxforget.config.stream import ContinualConfig
from jaxforget.data.sets import TokenisedSet
from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.evals.brief_training import brief_training
from jaxforget.evals.teacher_forced import score_set
from jaxforget.models.language_model import LanguageModel


def recovered_nll(
    lm: LanguageModel,
    sets: Sequence[tuple[TokenisedSet, TokenisedSet]],
    config: ContinualConfig,
    mesh: Mesh,
) -> list[float]:
    """Mean NLL of each earlier task's held-out set after `measure.recovery.steps` steps on it.

    Args:
      lm: the model after the last task; every task begins with it anew.
      sets: (trained on, held out) of the earlier tasks.
      config: for `measure`, the batch size, the seed and the learning rate.
      mesh: devices.
    Returns:
      Nats per token, one a task.
    Raises:
      UserError: a loss that is not finite.
    Source: the relearning check of "spurious forgetting" (Zheng et al., ICLR 2025).
    """
    probe = config.measure.recovery
    assert probe is not None
    rate = probe.learning_rate or config.optimizer.learning_rate / 10
    rows = meshes.whole_rows(config.measure.batch_size, mesh)
    found = []
    for train, held in sets:
        steps = brief_training(
            lm,
            train,
            {probe.steps},
            learning_rate=rate,
            batch_size=config.train.batch_size,
            mesh=mesh,
            seed=config.train.seed,
        )
        try:
            _, params = next(steps)
        except FloatingPointError as error:
            raise UserError(
                f"measure.recovery: {error}; lower its learning_rate, {rate}"
            ) from error
        table = score_set(
            lm.score, params, held, rows=rows, put=lambda batch: meshes.put_rows(batch, mesh)
        )
        found.append(float(-np.mean(table.logp, dtype=np.float64)))
    return found
