"""The repeated pass over probes against the general one."""

import jax
import numpy as np
from evals import small

from jaxforget.engine.mesh import MeshConfig, make_mesh, put, shardings
from jaxforget.evals.probing import probe_scorer
from jaxforget.evals.teacher_forced import score_set


def test_probes_score_as_in_the_general_pass_on_one_device_and_on_several():
    lm, found = small.model(), small.tokens(small.records()["forget"])
    table = score_set(lm.score, lm.params, found)
    parts = np.split(table.logp.astype(np.float64), table.offsets[1:-1])
    expected = [part.mean() for part in parts]
    for devices in (1, 4):
        mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
        params = put(lm.params, shardings(lm.params, mesh))
        for rows in (1, 3):
            scorer = probe_scorer(lm.score, found, rows=rows, mesh=mesh)
            np.testing.assert_allclose(scorer(params), expected, rtol=2e-5)
