"""What must be equal between runs over the same tasks (Yildiz et al. 2024, arXiv 2402.17400)."""

import json

import numpy as np
import pytest
from studies import tiny

from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.studies import continual

NAMES = ("forget", "retain", "world_facts")


def run(world, folder, names=NAMES, **changes):
    """Results of two updates on each of the tasks."""
    files = [{"path": str(world / "data" / f"{name}.jsonl")} for name in names]
    stream = [
        {"name": name, "data": file, "evaluate": file}
        for name, file in zip(names, files, strict=True)
    ]
    tree = {
        "stream": stream,
        "run_dir": str(folder),
        "model": str(world / "base"),
        "max_length": 128,
        "measure": {"limit": 6, "every": 0},
        "optimizer": {"learning_rate": 1e-3},
        "mesh": {"data": 1},
        "train": {"steps": 2, "batch_size": 4, "log_every": 1, "remat": "none"},
    }
    continual({**tree, **changes})
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_a_first_task_is_learned_as_if_alone_and_an_order_permutes_what_was_known(world, tmp_path):
    whole, alone = (run(world, tmp_path / str(n), NAMES[:n]) for n in (3, 1))
    nll = np.asarray(whole["matrix"]["nll"])
    # one domain alone is the first of a stream: the very same updates, scored in other batches
    logged = [tiny.rows(tmp_path / str(n))[:2] for n in (3, 1)]
    assert logged[0] == logged[1] and logged[0][0] != logged[0][1]
    assert alone["matrix"]["nll"][1][0] == pytest.approx(nll[1, 0], rel=1e-6)
    assert nll[1, 0] < nll[0, 0] - 1e-3
    # at its own end the last task has had no time to be forgotten: all of it is in the others
    metrics = whole["metrics"]
    own = [nll[task + 1, task] for task in range(3)]
    assert np.subtract(own, nll[-1]).sum() / 2 == pytest.approx(metrics["backward_transfer"])
    back = run(world, tmp_path / "reversed", order="reversed")
    assert back["matrix"]["tasks"] == [*reversed(NAMES)]
    np.testing.assert_allclose(back["matrix"]["nll"][0], nll[0, ::-1], rtol=1e-6)
    assert back["matrix"]["nll"][-1] != nll[-1, ::-1].tolist()


def test_a_run_killed_before_its_first_checkpoint_looks_anew(world, tmp_path, monkeypatch):
    measure = {"limit": 6, "every": 1, "probe": 2, "windows": [2]}

    class Killed(BaseException):
        pass

    def killed(self, step, state, data):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Checkpoints, "save", killed)
        run(world, tmp_path / "run", NAMES[:1], measure=measure)
    lines = (tmp_path / "run" / "looks.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    results = run(world, tmp_path / "run", NAMES[:1], measure=measure)
    assert results["looks"] == [json.loads(line) for line in lines]
